//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Every git commit bound to one permanent, reproducible artifact; exactly those bytes, and
/// nothing else, in every environment; and anyone can check offline what ran where and when.
#[derive(Debug, Parser)]
#[command(name = "adamant", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Exit codes: 0 yes, 1 the answer is no, 2 usage, 3 unavailable (try again), 70 a bug.\n\
                        Start here: adamant demo")]
pub(crate) struct Arguments {
    /// Data directory of the server (default: what `adamant init` noted in this repository, else
    /// $XDG_DATA_HOME/adamant or ~/.local/share/adamant)
    #[arg(long, global = true, env = "ADAMANT_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    pub(crate) fn is_server(&self) -> bool {
        matches!(self.command, Command::Up { .. })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server: git remote, registry, interface, page, log and metrics on one port
    #[command(after_help = "Examples:\n  adamant up\n  adamant up --data /srv/adamant --listen 127.0.0.1:7000\n  \
                            adamant up --anonymous-registry     # /v2/ without a token, loopback only")]
    Up {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:7000", value_name = "ADDR")]
        listen: SocketAddr,
        /// Settings of the server (default: server.toml in the data directory, if there is one)
        #[arg(long, env = "ADAMANT_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        /// Serve /v2/ to anyone on loopback, without a token
        #[arg(long)]
        anonymous_registry: bool,
        /// Debian mirror to lock from
        #[arg(long, env = "ADAMANT_DEBIAN_MIRROR", value_name = "URL")]
        debian_mirror: Option<String>,
        /// Host on a private address that inputs may be fetched from (repeatable)
        #[arg(long, value_name = "HOST")]
        allow_private: Vec<String>,
        /// First port for environments; each further environment takes the next one
        #[arg(long, value_name = "PORT")]
        environment_ports: Option<u16>,
    },
    /// Stop everything a data directory runs: instances and fronts; the server must be stopped first
    #[command(after_help = "Examples:\n  adamant down --data /srv/adamant")]
    Down,
    /// The whole tour: push, build, rebuild, promote, roll back, prove
    #[command(after_help = "Without --data it keeps everything in adamant-demo beside the server's own directory.\n\n\
                            Examples:\n  adamant demo\n  adamant demo --once --data /tmp/demo --listen 127.0.0.1:0\n  \
                            adamant demo --break                # attack what the tour left and watch it hold")]
    Demo {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:7000", value_name = "ADDR")]
        listen: SocketAddr,
        /// Stop everything that the tour has started, and exit
        #[arg(long)]
        once: bool,
        /// Attack a running demo: overwrite, flip, edit, swap; each is refused or caught
        #[arg(long = "break", conflicts_with = "once")]
        attack: bool,
    },
    /// Set up this git repository: write a recipe, create the project, add the remote
    #[command(after_help = "Examples:\n  adamant init\n  adamant init --project shop")]
    Init {
        /// Project name (default: name of the directory)
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
    },
    /// Pin every input and keep its bytes; writes adamant.lock
    #[command(after_help = "Examples:\n  adamant lock\n  adamant lock --update      # newest versions\n  \
                            adamant lock --check       # exit 1 if the recipe asks for something else")]
    Lock {
        /// Resolve everything anew
        #[arg(long)]
        update: bool,
        /// Only say whether the lock fits the recipe; writes nothing and asks nobody
        #[arg(long, conflicts_with = "update")]
        check: bool,
    },
    /// What is where: environments and releases
    #[command(after_help = "Examples:\n  adamant status\n  adamant status shop --json")]
    Status {
        /// Project (default: the one of this repository; elsewhere, all projects are listed)
        project: Option<String>,
    },
    /// Log of a build (shop/214) or of a running environment (prod)
    #[command(after_help = "Examples:\n  adamant logs shop/214\n  adamant logs prod --follow")]
    Logs {
        /// Release (`shop/214` or `214`) or environment
        what: String,
        /// Project, where `what` does not name it
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
        /// Keep printing as lines come
        #[arg(long, short)]
        follow: bool,
    },
    /// What differs between two releases, or between two environments
    #[command(after_help = "Examples:\n  adamant diff prod staging\n  adamant diff shop/211 shop/214")]
    Diff {
        /// Release or environment
        from: String,
        /// Release or environment
        to: String,
        /// Project, where neither names it
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
    },
    /// Bring a release to an environment: the same bytes
    #[command(after_help = "Examples:\n  adamant promote shop/214 staging\n  \
                            adamant promote shop/214 prod --wait --reason 'release 1.4'")]
    Promote {
        /// Release: `shop/214` or `214`
        release: String,
        /// Environment
        environment: String,
        /// Why; part of the record
        #[arg(long)]
        reason: Option<String>,
        /// Wait for a rebuild that is still running
        #[arg(long)]
        wait: bool,
    },
    /// Bring back the release and configuration an environment ran before; works without a server
    #[command(after_help = "Examples:\n  adamant rollback prod\n  adamant rollback prod --to shop/211 --reason outage")]
    Rollback {
        /// Environment
        environment: String,
        /// Release to return to (default: the last healthy one before the current)
        #[arg(long, value_name = "RELEASE")]
        to: Option<String>,
        /// Project (default: the one of this repository)
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
        /// Why; part of the record
        #[arg(long)]
        reason: Option<String>,
    },
    /// Show or change the configuration of an environment
    #[command(after_help = "Examples:\n  adamant config prod\n  adamant config prod GREETING=hello\n  \
                            adamant config prod --unset GREETING\nA change is used from the next deployment on.")]
    Config {
        /// Environment
        environment: String,
        /// Variables to set, NAME=VALUE
        #[arg(value_name = "NAME=VALUE")]
        set: Vec<String>,
        /// Variables to remove
        #[arg(long, value_name = "NAME")]
        unset: Vec<String>,
        /// Project (default: the one of this repository)
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
    },
    /// Write a capsule: everything needed to check a deployment offline
    #[command(
        after_help = "Examples:\n  adamant prove prod -o prod.capsule\n  adamant prove prod --sequence 3 > old.capsule\n\
                            The trust file that `verify` wants is trust.json in the data directory: get it once, over a way you trust."
    )]
    Prove {
        /// Environment
        environment: String,
        /// Number of the deployment (default: the newest)
        #[arg(long, value_name = "N")]
        sequence: Option<u64>,
        /// Project (default: the one of this repository)
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
        /// File to write (default: stdout)
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check a capsule with nothing but a trust file: no server, no network
    #[command(after_help = "Examples:\n  adamant verify prod.capsule --trust trust.json")]
    Verify {
        /// Capsule
        capsule: PathBuf,
        /// Trust file: origin, log key, root control key
        #[arg(long, value_name = "FILE")]
        trust: PathBuf,
    },
    /// Recompute everything: ledger, views, blobs, trees, commits; beside a live server
    #[command(after_help = "Examples:\n  adamant fsck\n  adamant fsck --data /srv/adamant --json")]
    Fsck,
    /// Look at a name of the registry that may move, such as `latest`
    #[command(after_help = "Examples:\n  adamant pointer log tools/tool:latest\n\
                            Which names may move is set in server.toml: `pointers`.")]
    Pointer {
        #[command(subcommand)]
        what: PointerCommand,
    },
    /// Remove content that no name leads to and nobody used for the grace period
    #[command(
        after_help = "The server does it by itself twice a day; the grace period is `[store] grace` in server.toml.\n\n\
                            Examples:\n  adamant gc --dry-run\n  adamant gc --json"
    )]
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Erase a blob or a file in git for good: one person asks, another one approves; a tombstone stays
    #[command(after_help = "Examples:\n  adamant erase sha256:… --reason 'a private key was committed'\n  \
                            adamant erase --git \"$(git rev-parse HEAD~:.env)\" --project shop --reason 'a password'\n  \
                            adamant erase --list\n  adamant erase sha256:… --approve      # somebody else\n  \
                            adamant erase sha256:… --withdraw\n  \
                            adamant erase sha256:… --approve --server http://127.0.0.1:7000 --token-file ~/bob.token")]
    Erase {
        /// What is to go: the digest of a layer, configuration, manifest, input or document
        #[arg(required_unless_present_any = ["list", "git"])]
        digest: Option<adamant_digest::Digest>,
        /// A file of a commit instead: the id of its git blob, as of `git rev-parse COMMIT:PATH`
        #[arg(long, value_name = "OBJECT-ID", requires = "project", conflicts_with_all = ["digest", "list"])]
        git: Option<String>,
        /// The project in whose repository it is
        #[arg(long, requires = "git")]
        project: Option<String>,
        /// Ask for it, and say why
        #[arg(long, value_name = "TEXT", conflicts_with_all = ["approve", "withdraw", "list"])]
        reason: Option<String>,
        /// Approve what somebody else asked for: the bytes go
        #[arg(long, conflicts_with_all = ["withdraw", "list"])]
        approve: bool,
        /// Take a request back
        #[arg(long, conflicts_with = "list")]
        withdraw: bool,
        /// Show requests and erasures
        #[arg(long, conflicts_with = "digest")]
        list: bool,
        /// Base URL of a server, instead of the one that runs on the data directory
        #[arg(long, value_name = "URL", requires = "token_file")]
        server: Option<String>,
        /// File with a named token that has the scope `erase`
        #[arg(long, value_name = "FILE", requires = "server")]
        token_file: Option<std::path::PathBuf>,
    },
    /// Other registries that are read through this one (`[[upstream]]` in server.toml)
    #[command(
        after_help = "Examples:\n  adamant upstream list\n  adamant upstream check docker.example/library/x:1\n  \
                            adamant upstream update docker.example/library/x:1"
    )]
    Upstream {
        #[command(subcommand)]
        what: UpstreamCommand,
    },
    /// Receivers that are told what is pushed (`[[webhook]]` in server.toml)
    #[command(after_help = "Examples:\n  adamant webhook list\n  adamant webhook list --json")]
    Webhook {
        #[command(subcommand)]
        what: WebhookCommand,
    },
    /// Print a short-lived token, as password for docker, podman, skopeo or curl; or manage named ones
    #[command(
        after_help = "Examples:\n  skopeo login --tls-verify=false -u me -p \"$(adamant token)\" 127.0.0.1:7000\n  \
                            adamant token create ci --scope 'team/*:pull,push' --expires 90d\n  \
                            adamant token list\n  adamant token revoke ci"
    )]
    Token {
        #[command(subcommand)]
        command: Option<TokenCommand>,
    },
    /// Print a one-time login link for the page
    #[command(after_help = "Examples:\n  adamant login")]
    Login,
    /// What this machine allows: namespaces, limits, git
    #[command(after_help = "Examples:\n  adamant doctor")]
    Doctor,
    /// Git credential helper (git calls it)
    #[command(hide = true)]
    Credential {
        /// get, store or erase
        operation: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PointerCommand {
    /// Where it led and leads, newest first: who moved it and when
    #[command(
        after_help = "Examples:\n  adamant pointer log tools/tool:latest\n  adamant pointer log shop/web:edge --json"
    )]
    Log {
        /// `repository:tag`
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UpstreamCommand {
    /// Upstreams with the tags that are bound here
    #[command(after_help = "Examples:\n  adamant upstream list\n  adamant upstream list docker.example --json")]
    List {
        /// Upstream (default: all)
        name: Option<String>,
    },
    /// Compare bound tags with those of the upstream now; exit 1 if one has moved. Nothing is rebound
    #[command(after_help = "Examples:\n  adamant upstream check\n  adamant upstream check docker.example\n  \
                            adamant upstream check docker.example/library/x:1 --json")]
    Check {
        /// NAME, NAME/REPOSITORY or NAME/REPOSITORY:TAG (default: everything)
        what: Option<String>,
    },
    /// Bind what a tag leads to now to a new tag with the date, TAG-seen-YYYYMMDD
    #[command(after_help = "Examples:\n  adamant upstream update docker.example/library/x:1\n\
                            The tag itself stays bound to what it was at first sight.")]
    Update {
        /// NAME/REPOSITORY:TAG
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum WebhookCommand {
    /// Webhooks with their positions in the ledger, what they lag behind and why the last attempt failed
    #[command(after_help = "Examples:\n  adamant webhook list\n  adamant webhook list --json")]
    List,
}

/// Named tokens for the registry.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a named token and print its secret, this once
    Create {
        /// Name; it is given once
        name: String,
        /// What it allows: repositories (`*` is any run of characters) and actions (pull, push); repeatable
        ///
        /// The scope `erase` lets it ask for erasures, and approve those of others.
        #[arg(long, required = true, value_name = "REPOSITORIES:ACTIONS")]
        scope: Vec<String>,
        /// Whose token it is; the scope `erase` needs it, and two tokens of a person count as one
        #[arg(long, value_name = "NAME")]
        person: Option<String>,
        /// How long it holds: 30m, 12h, 90d (default: until it is revoked)
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires: Option<u64>,
    },
    /// All named tokens, revoked ones too
    List,
    /// Revoke a named token, at once
    Revoke {
        /// Name
        name: String,
    },
}

/// `90d` in seconds.
fn lifetime(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no time: write 30m, 12h or 90d");
    let split = text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at)).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let number = number.parse::<u64>().map_err(|_| bad())?;
    number.checked_mul(unit).filter(|seconds| *seconds > 0).ok_or_else(bad)
}

/// Parses the process's arguments; help and mistakes are printed here.
pub(crate) fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|error| {
        // Help that cannot be printed has no reader.
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { 2 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn lifetimes() {
        assert_eq!(super::lifetime("90d"), Ok(90 * 86_400));
        assert_eq!(super::lifetime("1s"), Ok(1));
        for bad in ["", "d", "90", "-1d", "0d", "9ü", "99999999999999999999d", "9999999999999999999d"] {
            assert!(super::lifetime(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_sound_and_every_command_has_examples() {
        let command = super::Arguments::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            assert!(sub.get_about().is_some(), "{} has no summary", sub.get_name());
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "{} has no examples", sub.get_name());
        }
    }
}
