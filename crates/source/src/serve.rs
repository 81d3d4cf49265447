//! Smart HTTP without the HTTP: advertisements and fetches.
//! Spec: git, gitprotocol-http(5), gitprotocol-v2(5).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};

use crate::body::Body;
use crate::git::{complaint, failed};
use crate::{ByteStream, Encoding, GitError, Oid, Repository, ServeError, packet};

/// What a client wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Fetch and clone.
    UploadPack,
    /// Push.
    ReceivePack,
}

/// The most an advertisement may hold.
const ADVERTISEMENT: usize = 64 << 20;
/// What our receive-pack can do.
pub(crate) const CAPABILITIES: &str =
    "report-status delete-refs side-band-64k ofs-delta object-format=sha1 agent=adamant";

impl Service {
    /// From the name git uses, `git-upload-pack` or `git-receive-pack`.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::UploadPack, Self::ReceivePack].into_iter().find(|service| service.name() == name)
    }

    /// The name git uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::UploadPack => "git-upload-pack",
            Self::ReceivePack => "git-receive-pack",
        }
    }

    /// Content type of the answer to `info/refs`.
    pub fn advertisement_type(self) -> &'static str {
        match self {
            Self::UploadPack => "application/x-git-upload-pack-advertisement",
            Self::ReceivePack => "application/x-git-receive-pack-advertisement",
        }
    }

    /// Content type of requests.
    pub fn request_type(self) -> &'static str {
        match self {
            Self::UploadPack => "application/x-git-upload-pack-request",
            Self::ReceivePack => "application/x-git-receive-pack-request",
        }
    }

    /// Content type of answers.
    pub fn result_type(self) -> &'static str {
        match self {
            Self::UploadPack => "application/x-git-upload-pack-result",
            Self::ReceivePack => "application/x-git-receive-pack-result",
        }
    }
}

impl Repository {
    /// The answer to `info/refs?service=…`. `protocol` is the value of the `Git-Protocol`
    /// header. Kept refs are not shown.
    pub async fn advertise(&self, service: Service, protocol: Option<&str>) -> Result<Bytes, ServeError> {
        let mut answer = BytesMut::new();
        let version = version(protocol);
        if service == Service::ReceivePack || version != Some("version=2") {
            packet::data(&mut answer, format!("# service={}\n", service.name()).as_bytes());
            packet::flush(&mut answer);
        }
        match service {
            Service::UploadPack => {
                let _permit = permit(&self.0.shared.fetches)?;
                let mut command =
                    self.0.git.command(["upload-pack", "--strict", "--stateless-rpc", "--advertise-refs"]);
                command.arg(self.path());
                if let Some(version) = version {
                    command.env("GIT_PROTOCOL", version);
                }
                let refs = self.0.git.finish("upload-pack", command, &[], ADVERTISEMENT).await?;
                answer.extend_from_slice(&refs);
            }
            Service::ReceivePack => {
                let refs = self.advertised().await?;
                let mut capabilities = Some(CAPABILITIES);
                let none = [(Oid::ZERO, "capabilities^{}".to_owned())];
                for (oid, name) in if refs.is_empty() { &none[..] } else { &refs } {
                    let line = match capabilities.take() {
                        Some(capabilities) => format!("{oid} {name}\0{capabilities}\n"),
                        None => format!("{oid} {name}\n"),
                    };
                    packet::data(&mut answer, line.as_bytes());
                }
                packet::flush(&mut answer);
            }
        }
        Ok(answer.freeze())
    }

    /// The answer to `POST git-upload-pack`. It ends with an error if git does; dropping it ends
    /// git.
    #[expect(clippy::unused_async, reason = "it starts a process and a task: only a runtime may call it")]
    pub async fn upload_pack(
        &self,
        protocol: Option<&str>,
        encoding: Encoding,
        body: ByteStream,
    ) -> Result<ByteStream, ServeError> {
        let permit = permit(&self.0.shared.fetches)?;
        let limits = &self.0.limits;
        let mut command = self.0.git.command(["upload-pack", "--strict", "--stateless-rpc"]);
        command.arg(self.path());
        if let Some(version) = version(protocol) {
            command.env("GIT_PROTOCOL", version);
        }
        let child = self.0.git.spawn(command)?;
        let body = Body::new(body, encoding, limits.fetch_request_bytes, limits.idle_time);
        let (sender, receiver) = mpsc::channel(8);
        let (time, idle) = (limits.transfer_time, limits.idle_time);
        self.0.shared.tasks.spawn(async move {
            let _permit = permit;
            let served = tokio::time::timeout(time, serve(child, body, &sender, idle)).await;
            let error = match served {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the fetch took too long"),
            };
            tracing::info!(%error, "fetch");
            let _ = tokio::time::timeout(idle, sender.send(Err(error))).await;
        });
        Ok(stream(receiver))
    }
}

/// Pumps the request into git and its answer to the client, who may leave.
async fn serve(
    mut child: Child,
    mut body: Body,
    client: &mpsc::Sender<io::Result<Bytes>>,
    idle: Duration,
) -> io::Result<()> {
    let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = streams else {
        return Err(io::Error::other("no pipes to git"));
    };
    let feed = async move {
        while let Some(chunk) = body.chunk().await.map_err(io::Error::other)? {
            if stdin.write_all(&chunk).await.is_err() {
                // git has heard enough; its exit code says whether that is an error.
                break;
            }
        }
        Ok(())
    };
    let relay = async {
        let mut buffer = BytesMut::with_capacity(64 << 10);
        while stdout.read_buf(&mut buffer).await? > 0 {
            let sent = tokio::time::timeout(idle, client.send(Ok(buffer.split().freeze()))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client left or stopped reading"));
            }
            buffer.reserve(64 << 10);
        }
        Ok(())
    };
    let said = async { Ok::<_, io::Error>(complaint(&mut stderr).await) };
    let ((), (), said) = tokio::try_join!(feed, relay, said)?;
    let status = child.wait().await?;
    if status.success() { Ok(()) } else { Err(io::Error::other(failed("upload-pack", &said, status))) }
}

/// The protocol version to ask git for: nothing else of the header reaches its environment.
fn version(protocol: Option<&str>) -> Option<&'static str> {
    let known = ["version=2", "version=1"];
    known.into_iter().find(|version| protocol.is_some_and(|all| all.split(':').any(|part| part.trim() == *version)))
}

/// A place among the requests at work.
pub(crate) fn permit(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ServeError> {
    Arc::clone(places).try_acquire_owned().map_err(|error| match error {
        TryAcquireError::NoPermits | TryAcquireError::Closed => ServeError::Busy,
    })
}

/// A channel as a stream.
pub(crate) fn stream(receiver: mpsc::Receiver<io::Result<Bytes>>) -> ByteStream {
    futures_util::stream::unfold(receiver, |mut receiver| async {
        let next = receiver.recv().await?;
        Some((next, receiver))
    })
    .boxed()
}

impl From<ServeError> for io::Error {
    fn from(error: ServeError) -> Self {
        io::Error::other(error)
    }
}

impl From<GitError> for io::Error {
    fn from(error: GitError) -> Self {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn only_known_versions_pass() {
        assert_eq!(version(None), None);
        assert_eq!(version(Some("version=2")), Some("version=2"));
        assert_eq!(version(Some("x=y:version=1")), Some("version=1"));
        assert_eq!(version(Some("version=3")), None);
        assert_eq!(version(Some("version=2\nX=1")), None);
    }
}
