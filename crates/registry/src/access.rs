//! What a caller may do.

/// Who calls and what they may do, as the server found out before it passed the request on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// No credentials were sent.
    Anonymous {
        /// Anybody may pull.
        pull: bool,
        /// Anybody may push.
        push: bool,
    },
    /// The credentials hold. Whoever is known may pull.
    Granted {
        /// Written into every binding that the caller makes.
        actor: String,
        /// They may push.
        push: bool,
    },
    /// Credentials were sent and do not hold.
    Denied,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Pull,
    Push,
}

/// What a request gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// In whose name.
    Allowed(String),
    /// Credentials might help: 401.
    Unauthorized,
    /// They do not: 403.
    Forbidden(String),
}

impl Access {
    pub(crate) fn decide(self, right: Right) -> Decision {
        match (self, right) {
            (Self::Anonymous { pull: true, .. }, Right::Pull) | (Self::Anonymous { push: true, .. }, Right::Push) => {
                Decision::Allowed("anonymous".to_owned())
            }
            (Self::Granted { actor, .. }, Right::Pull) | (Self::Granted { actor, push: true }, Right::Push) => {
                Decision::Allowed(actor)
            }
            (Self::Granted { actor, push: false }, Right::Push) => Decision::Forbidden(actor),
            (Self::Anonymous { .. } | Self::Denied, _) => Decision::Unauthorized,
        }
    }
}
