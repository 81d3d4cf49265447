//! How commands speak: results to stdout, everything else to stderr, errors with cause and fix.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use adamant_api::{ApiError, Class};
use adamant_client::ClientError;
use serde::Serialize;

use crate::cli::Arguments;

/// A command that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: ApiError,
}

impl Failure {
    pub(crate) fn new(class: Class, message: impl Into<String>) -> Self {
        Self { error: ApiError::new(class, message) }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    pub(crate) fn no(message: impl Into<String>) -> Self {
        Self::new(Class::No, message)
    }

    pub(crate) fn bug(message: impl Into<String>) -> Self {
        Self::new(Class::Internal, message)
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.error.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub(crate) fn cause(mut self, cause: impl std::fmt::Display) -> Self {
        self.error.causes.push(cause.to_string());
        self
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { error }
    }
}

impl From<adamant_server::Problem> for Failure {
    fn from(problem: adamant_server::Problem) -> Self {
        Self { error: problem.error }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Api(error) => Self { error },
            ClientError::Off { ref data, ref source } => Self::new(Class::Unavailable, error.to_string())
                .cause(source)
                .hint(format!("start it: `adamant up --data {}`", data.display())),
            ClientError::Silent { process, .. } => {
                let named = process.map_or_else(|| "the server".to_owned(), |process| format!("process {process}"));
                Self::new(Class::Unavailable, error.to_string()).hint(format!(
                    "stop {named} (SIGKILL if it must be), then `adamant up`; a rollback works without a server"
                ))
            }
            ClientError::Broken { .. } => Self::new(Class::Unavailable, error.to_string())
                .hint("what was acknowledged is kept; run the command again"),
            ClientError::Answer(_) => Self::new(Class::Internal, error.to_string())
                .hint("is the server of another version? `adamant --version`"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let mut failure = Self::new(Class::Internal, error.to_string());
        failure.error.causes = error.chain().skip(1).map(ToString::to_string).collect();
        failure
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // A reader that has seen enough (`adamant logs | head`) is no failure of ours.
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        let class = if error.kind() == std::io::ErrorKind::StorageFull { Class::Unavailable } else { Class::Internal };
        Self::new(class, error.to_string())
    }
}

/// Prints a failure and gives the exit code of its class.
pub(crate) fn report(failure: &Failure, json: bool) -> ExitCode {
    let error = &failure.error;
    let mut err = std::io::stderr().lock();
    // Nothing can be done about a stderr that is gone.
    let _ = if json {
        serde_json::to_writer(&mut err, error).map_err(std::io::Error::from).and_then(|()| writeln!(err))
    } else {
        let mut text = format!("error: {}\n", error.message);
        for cause in &error.causes {
            text.push_str("  caused by: ");
            text.push_str(cause);
            text.push('\n');
        }
        if let Some(hint) = &error.hint {
            text.push_str("\nhint: ");
            text.push_str(hint);
            text.push('\n');
        }
        err.write_all(text.as_bytes())
    };
    ExitCode::from(error.class.exit_code())
}

/// A line for people while something runs.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A line of the result.
pub(crate) fn result(text: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// The result as one JSON document.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::bug(e.to_string()))?;
    result(text)
}

/// Progress: shown on a terminal, and line by line elsewhere.
pub(crate) fn progress(line: &str) {
    say(line);
}

/// Whether people read stderr as it comes.
pub(crate) fn watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Logs go to stderr: as text on a terminal, as JSON elsewhere. `ADAMANT_LOG` filters.
pub(crate) fn init_log(arguments: &Arguments) {
    use tracing_subscriber::EnvFilter;
    let default = if arguments.is_server() { "info" } else { "error" };
    let filter = EnvFilter::try_from_env("ADAMANT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Only one subscriber exists; a second call could only come from a test.
    let _ = if watched() { builder.with_target(false).try_init() } else { builder.json().try_init() };
}
