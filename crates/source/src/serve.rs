//! Smart HTTP without the HTTP: advertisements and fetches.
//! Spec: git, gitprotocol-http(5), gitprotocol-v2(5).

use std::fmt::Write as _;
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
/// Erased objects that are named to a client whose fetch fails.
const TOLD: usize = 5;
/// Packs, and if that fails says what is not here.
/// git appends its own command to it.
const PACK_AND_TELL: &str =
    r#"uploadpack.packObjectsHook=pack() { "$@" || { s=$?; printf %s "$ADAMANT_ERASED" >&2; exit $s; }; }; pack"#;
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
                let mut command = self.upload_pack_command();
                command.arg("--advertise-refs").arg(self.path());
                if let Some(version) = version {
                    command.env("GIT_PROTOCOL", version);
                }
                let refs = self.0.git.finish("upload-pack", command, &[], ADVERTISEMENT).await?;
                answer.extend_from_slice(&refs);
            }
            Service::ReceivePack => {
                let refs = self.advertised().await?;
                // A client may have what was erased and must not send what differs from it.
                let thin = if self.0.shared.erased.is_empty() { "" } else { " no-thin" };
                let mut capabilities = Some(format!("{CAPABILITIES}{thin}"));
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
    pub async fn upload_pack(
        &self,
        protocol: Option<&str>,
        encoding: Encoding,
        body: ByteStream,
    ) -> Result<ByteStream, ServeError> {
        let permit = permit(&self.0.shared.fetches)?;
        let limits = &self.0.limits;
        let mut body = Some(Body::new(body, encoding, limits.fetch_request_bytes, limits.idle_time));
        let mut asked = Bytes::new();
        let erased = &self.0.shared.erased;
        if !erased.is_empty() {
            if let Some(mut body) = body.take() {
                asked = whole(&mut body).await?;
            }
            if let Some(refusal) = wanted(&asked).find_map(|oid| erased.why(oid).map(|why| refusal(oid, &why))) {
                return Ok(futures_util::stream::once(std::future::ready(Ok(refusal))).boxed());
            }
        }
        let mut command = self.upload_pack_command();
        command.arg(self.path());
        if let Some(version) = version(protocol) {
            command.env("GIT_PROTOCOL", version);
        }
        let child = self.0.git.spawn(command)?;
        let (sender, receiver) = mpsc::channel(8);
        let (time, idle) = (limits.transfer_time, limits.idle_time);
        self.0.shared.tasks.spawn(async move {
            let _permit = permit;
            let served = tokio::time::timeout(time, serve(child, (asked, body), &sender, idle)).await;
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

impl Repository {
    /// `upload-pack`. Where something was erased, a clone without blobs (`--filter=blob:none`) gets all
    /// history, and blobs when it needs them; who asks for everything hears what cannot be given.
    fn upload_pack_command(&self) -> std::process::Command {
        let erased = self.0.shared.erased.all();
        if erased.is_empty() {
            return self.0.git.command(["upload-pack", "--strict", "--stateless-rpc"]);
        }
        let settings = ["-c", "uploadpack.allowFilter=true", "-c", PACK_AND_TELL];
        let command = ["upload-pack", "--strict", "--stateless-rpc"];
        let mut command = self.0.git.command(settings.into_iter().chain(command));
        let mut told = String::from("This repository is without what was erased:\n");
        for (blob, why) in erased.iter().take(TOLD) {
            let _ = writeln!(told, "{}", crate::erased::line(*blob, why));
        }
        told.push_str("Clone without the blobs you do not need: git clone --filter=blob:none\n");
        command.env("ADAMANT_ERASED", told);
        command
    }
}

/// Pumps the request into git and its answer to the client, who may leave.
async fn serve(
    mut child: Child,
    (asked, body): (Bytes, Option<Body>),
    client: &mpsc::Sender<io::Result<Bytes>>,
    idle: Duration,
) -> io::Result<()> {
    let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = streams else {
        return Err(io::Error::other("no pipes to git"));
    };
    // Read before, where something was erased.
    let told = body.is_none();
    let feed = async move {
        // A git that stops reading has heard enough.
        let _ = stdin.write_all(&asked).await;
        let Some(mut body) = body else { return Ok(()) };
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
    if status.success() {
        return Ok(());
    }
    let error = failed("upload-pack", &said, status);
    if told {
        // git has told the client all of it; a broken connection would swallow the last lines.
        tracing::info!(%error, "fetch");
        return Ok(());
    }
    Err(io::Error::other(error))
}

/// The rest of a request.
async fn whole(body: &mut Body) -> Result<Bytes, ServeError> {
    let mut all = BytesMut::new();
    while let Some(chunk) = body.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

/// The objects that a request wants.
fn wanted(request: &[u8]) -> impl Iterator<Item = Oid> + '_ {
    let wants = request.windows(5).enumerate().filter(|(_, word)| word == b"want ");
    wants.filter_map(|(at, _)| Oid::from_ascii(request.get(at + 5..at + 45)?).ok())
}

/// The answer to who wants what was erased.
fn refusal(blob: Oid, why: &str) -> Bytes {
    let mut answer = BytesMut::new();
    packet::data(
        &mut answer,
        format!(
            "ERR {}
",
            crate::erased::line(blob, why)
        )
        .as_bytes(),
    );
    answer.freeze()
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
