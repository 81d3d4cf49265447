//! The seam to the pipeline: what happens between "objects durable" and "branch moved".

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use crate::Oid;

/// One ref a client wants at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The project.
    pub project: String,
    /// Full name, `refs/heads/…` or `refs/tags/…`.
    pub refname: String,
    /// The commit the branch is at; `None` if it is new. Always `None` for tags.
    pub old: Option<Oid>,
    /// The commit that was pushed; for an annotated tag the commit it points to.
    pub new: Oid,
    /// Who pushed, as authenticated by the caller.
    pub by: String,
}

/// The pipeline.
pub trait Receiver: Send + Sync + 'static {
    /// Called once the objects of `push.new` are durable under a ref that nobody can move. The
    /// ref moves after `Ok`; `Err` is the one-line reason the ref is refused, and a second push
    /// calls this again. It runs to its end even if the client leaves; a panic refuses the ref.
    /// Lines sent on `progress` reach the client as `remote: …`; a client that does not read
    /// loses lines, it never holds the pipeline up.
    fn received(&self, push: Push, progress: mpsc::Sender<String>) -> BoxFuture<'static, Result<(), String>>;
}
