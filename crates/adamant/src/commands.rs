//! What each command does.

mod init;
pub(crate) mod server;
mod ship;
mod show;
mod space;
mod token;
mod upstream;
mod webhook;

use std::path::Path;
use std::process::ExitCode;

use adamant_client::Server;

use crate::cli::{Arguments, Command, PointerCommand, WebhookCommand};
use crate::output::Failure;
use crate::{demo, project};

/// Runs one command to its exit code.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let Arguments { data, json, command } = arguments;
    let data = data.as_deref();
    match command {
        Command::Up { listen, config: file, anonymous_registry, debian_mirror, allow_private, environment_ports } => {
            let data = match data {
                Some(dir) => std::path::absolute(dir)?,
                None => project::default_data_dir()?,
            };
            let mut config = server::config(data, listen)?;
            if file.is_some() {
                config.settings = adamant_server::Settings::load(&config.data, file.as_deref())?;
            }
            config.anonymous_registry = anonymous_registry;
            config.debian_mirror = debian_mirror;
            config.allow_private = allow_private;
            config.environment_ports = environment_ports;
            server::up(config).await
        }
        Command::Down => server::down(&project::data_dir(data)?).await,
        Command::Demo { listen, once, attack } => {
            let data = match data {
                Some(dir) => std::path::absolute(dir)?,
                None => project::default_data_dir()?.with_file_name("adamant-demo"),
            };
            if attack { demo::attack(&data).await } else { demo::tour(&data, listen, once).await }
        }
        Command::Init { project } => init::init(data, project.as_deref(), json).await,
        Command::Lock { update, check } => init::lock(data, update, check, json).await,
        Command::Status { project } => show::status(data, project.as_deref(), json).await,
        Command::Logs { what, project, follow } => show::logs(data, &what, project.as_deref(), follow).await,
        Command::Diff { from, to, project } => show::diff(data, &from, &to, project.as_deref(), json).await,
        Command::Promote { release, environment, reason, wait } => {
            ship::promote(data, &release, environment, reason, wait, json).await
        }
        Command::Rollback { environment, to, project, reason } => {
            ship::rollback(data, environment, to.as_deref(), project.as_deref(), reason, json).await
        }
        Command::Config { environment, set, unset, project } => {
            ship::config(data, &environment, &set, unset, project.as_deref(), json).await
        }
        Command::Prove { environment, sequence, project, output } => {
            show::prove(data, &environment, sequence, project.as_deref(), output.as_deref()).await
        }
        Command::Verify { capsule, trust } => show::verify(&capsule, &trust, json),
        Command::Fsck => show::fsck(&project::data_dir(data)?, json).await,
        Command::Pointer { what: PointerCommand::Log { name } } => show::pointer(data, &name, json).await,
        Command::Gc { dry_run } => space::gc(data, dry_run, json).await,
        Command::Erase { digest, git, project, reason, approve, withdraw, list: _, server, token_file } => {
            let action = match (reason, approve, withdraw) {
                (Some(reason), ..) => Some(adamant_api::EraseAction::Request { reason }),
                (None, true, _) => Some(adamant_api::EraseAction::Approve),
                (None, _, true) => Some(adamant_api::EraseAction::Withdraw),
                (None, ..) => None,
            };
            let what = match (digest, git, project) {
                (Some(digest), ..) => Some(adamant_api::Erasable::Digest(digest)),
                (None, Some(object), Some(project)) => Some(adamant_api::Erasable::Git { project, object }),
                (None, ..) => None,
            };
            let server = match (server, token_file) {
                (Some(url), Some(file)) => space::server(&url, &file)?,
                _ => connect(data).await?,
            };
            match (what, action) {
                (None, _) => space::erasures(&server, json).await,
                (Some(what), Some(action)) => space::erase(&server, what, action, json).await,
                (Some(_), None) => Err(Failure::usage("say what to do: --reason TEXT, --approve or --withdraw")),
            }
        }
        Command::Upstream { what } => upstream::run(data, what, json).await,
        Command::Webhook { what: WebhookCommand::List } => webhook::list(data, json).await,
        Command::Token { command: None } => show::token(data, json).await,
        Command::Token { command: Some(command) } => token::run(data, command, json).await,
        Command::Login => show::login(data, json).await,
        Command::Doctor => show::doctor(json),
        Command::Credential { operation } => show::credential(data, &operation).await,
    }
}

/// The server of the data directory in force.
async fn connect(data: Option<&Path>) -> Result<Server, Failure> {
    Ok(adamant_client::connect(&project::data_dir(data)?).await?)
}

/// Escapes a path segment of the interface. Names the server accepts need no escape; anything
/// else must still reach it as one segment, to be refused there by name.
fn segment(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
