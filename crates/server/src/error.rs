//! How operations fail, and what the outside hears of it.

use adamant_api::{ApiError, Class};
use adamant_store::{AppendError, LedgerError, ReadBlobError, WriteBlobError};

/// A failed operation: what the client is told, and what only the log hears.
#[derive(Debug)]
pub struct Problem {
    /// For the client.
    pub error: ApiError,
    /// For the log alone.
    pub internal: Option<String>,
}

impl Problem {
    pub(crate) fn new(class: Class, message: impl Into<String>) -> Self {
        Self { error: ApiError::new(class, message), internal: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    pub(crate) fn no(message: impl Into<String>) -> Self {
        Self::new(Class::No, message)
    }

    pub(crate) fn damaged(message: impl Into<String>) -> Self {
        Self::new(Class::Internal, message).hint("run `adamant fsck`")
    }

    /// A failure inside; the client hears what was being done, the log hears why.
    pub(crate) fn internal(doing: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let mut problem = Self::new(Class::Internal, doing);
        problem.internal = Some(why.to_string());
        problem.error.causes.push(why.to_string());
        problem
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

    /// In one text, for logs. Causes may have several lines.
    pub(crate) fn line(&self) -> String {
        self.joined(str::to_owned)
    }

    /// On one line, for git's `ng`. A first line that ends in a colon announces what follows; that
    /// clause is left out with it.
    pub(crate) fn short(&self) -> String {
        self.joined(|text| match text.split_once('\n') {
            None => text.to_owned(),
            Some((first, _)) => {
                let announced = first.strip_suffix(':').and_then(|first| first.rsplit_once("; "));
                announced.map_or(first, |(before, _)| before).to_owned()
            }
        })
    }

    fn joined(&self, shape: impl Fn(&str) -> String) -> String {
        let mut line = shape(&self.error.message);
        for cause in &self.error.causes {
            line.push_str(": ");
            line.push_str(&shape(cause));
        }
        if let Some(hint) = &self.error.hint {
            line.push_str(" (");
            line.push_str(&shape(hint));
            line.push(')');
        }
        line
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.line())
    }
}

impl std::error::Error for Problem {}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        match &error {
            LedgerError::Unavailable(_) => Self::new(Class::Unavailable, error.to_string())
                .hint("nothing was lost; free some space or wait, then try again"),
            LedgerError::Damaged(_) => Self::damaged(error.to_string()),
            LedgerError::Newer { .. } => Self::usage(error.to_string()),
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Conflict(conflict) => Self::new(Class::Conflict, conflict.to_string())
                .hint("a bound name never changes; use a new name, or the digest it is bound to"),
            AppendError::ChainMoved { .. } => {
                Self::new(Class::Unavailable, error.to_string()).hint("somebody else was faster; look and try again")
            }
            AppendError::Invalid(_) => Self::internal("a fact could not be recorded", error),
            AppendError::Ledger(error) => error.into(),
        }
    }
}

impl From<ReadBlobError> for Problem {
    fn from(error: ReadBlobError) -> Self {
        Self::damaged(error.to_string())
    }
}

impl From<WriteBlobError> for Problem {
    fn from(error: WriteBlobError) -> Self {
        match &error {
            WriteBlobError::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => {
                Self::new(Class::Unavailable, error.to_string())
                    .hint("the disk is full: free some space, then try again")
            }
            WriteBlobError::Io(_) => Self::new(Class::Unavailable, error.to_string()),
            WriteBlobError::Erased { .. } => Self::new(Class::Denied, error.to_string()),
            WriteBlobError::Mismatch(_) => Self::internal("a blob changed while it was written", error),
        }
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Self::new(Class::Unavailable, "the disk is full").hint("free some space, then try again");
        }
        Self::internal("the system refused an operation", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_ends_before_what_takes_several() {
        let failed = |cause: &str| Problem::no("web was not built").cause(cause);
        let problem = failed("the build command exited with 2; its last lines:\n  cc -o web\n  web.c:1: error");
        assert_eq!(problem.short(), "web was not built: the build command exited with 2");
        assert!(problem.line().ends_with("; its last lines:\n  cc -o web\n  web.c:1: error"));
        assert_eq!(failed("a: b; c").short(), "web was not built: a: b; c");
        assert_eq!(failed("one\ntwo").hint("do\nit").short(), "web was not built: one (do)");
    }
}
