//! receive-pack: commands, pack, pipeline, refs, report.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use crate::body::Body;
use crate::git::one_line;
use crate::quarantine::{self, Commits, Quarantine, Refused};
use crate::refs::Update;
use crate::request::{Command, Request, reason};
use crate::serve::{permit, stream};
use crate::{ByteStream, Encoding, Oid, Pending, Push, Receiver, RefError, Repository, ServeError, packet};

/// How long a client hears nothing at most: proxies and git itself give up on silence.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// Messages a slow client may be behind before it loses progress lines.
const BEHIND: usize = 1024;
/// Lines the pipeline may be ahead.
const PROGRESS: usize = 64;
/// The commands before the pack.
const COMMAND_BYTES: u64 = 1 << 20;

impl Repository {
    /// The answer to `POST git-receive-pack`. Returns once the request is read; the work goes on
    /// to its end whether or not the answer is read. `by` is who pushes, as authenticated.
    pub async fn receive_pack(
        &self,
        by: &str,
        encoding: Encoding,
        body: ByteStream,
        receiver: Arc<dyn Receiver>,
    ) -> Result<ByteStream, ServeError> {
        let permit = permit(&self.0.shared.pushes)?;
        let limits = &self.0.limits;
        // Twice: what is over the limit of a pack is still read away, to a point.
        let limit = limits.pack_bytes.saturating_mul(2).saturating_add(COMMAND_BYTES);
        let mut body = Body::new(body, encoding, limit, limits.idle_time);
        let request = Request::read(&mut body, limits.refs_per_push).await?;
        let (messages, answer) = mpsc::channel(BEHIND);
        if request.commands.is_empty() {
            return Ok(stream(answer));
        }
        let client = Client { messages, side_band: request.side_band };
        let (taken, whole) = oneshot::channel();
        let session = Session { repository: self.clone(), by: by.to_owned(), receiver, client, request };
        self.0.shared.tasks.spawn(async move {
            let _permit = permit;
            session.run(body, taken).await;
        });
        match whole.await {
            Ok(Ok(())) => Ok(stream(answer)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ServeError::Interrupted("the server stopped".to_owned())),
        }
    }
}

/// One push at work.
struct Session {
    repository: Repository,
    by: String,
    receiver: Arc<dyn Receiver>,
    client: Client,
    request: Request,
}

impl Session {
    async fn run(self, mut body: Body, taken: oneshot::Sender<Result<(), ServeError>>) {
        let mut pack = Ok(None);
        if let Some(refused) = &self.request.refused {
            pack = Err(Refused(refused.clone()));
        } else if self.request.has_pack() {
            pack = match Quarantine::receive(&self.repository, &mut body).await {
                Ok(pack) => pack,
                Err(error) => {
                    let _ = taken.send(Err(error));
                    return;
                }
            };
        }
        if let Err(error) = body.drain().await {
            let _ = taken.send(Err(error));
            return;
        }
        drop(body);
        let _ = taken.send(Ok(()));
        let report = self.client.while_waiting(self.work(pack)).await;
        self.client.report(self.request.report, &report).await;
    }

    /// Everything after the last byte of the request; returns the report.
    async fn work(&self, pack: Result<Option<Quarantine>, Refused>) -> Bytes {
        let mut report = BytesMut::new();
        match self.accept(pack).await {
            Ok(commits) => {
                packet::data(&mut report, b"unpack ok\n");
                for command in &self.request.commands {
                    let line = match self.execute(command, &commits).await {
                        Ok(()) => format!("ok {}\n", command.name),
                        Err(text) => format!("ng {} {}\n", command.name, reason(&text)),
                    };
                    packet::data(&mut report, line.as_bytes());
                }
            }
            Err(Refused(text)) => {
                let text = self.said_of_erased(text);
                packet::data(&mut report, format!("unpack {}\n", reason(&text)).as_bytes());
                for command in &self.request.commands {
                    let line = format!("ng {} {}\n", command.name, reason(&text));
                    packet::data(&mut report, line.as_bytes());
                }
            }
        }
        packet::flush(&mut report);
        report.freeze()
    }

    /// git's complaint that an object is not here, as the tombstone of that object.
    fn said_of_erased(&self, text: String) -> String {
        match self.repository.0.shared.erased.named_in(&text) {
            Some((blob, why)) if !text.contains(&*why) => {
                format!("{}; push commits whose files do not hold it", crate::erased::line(blob, &why))
            }
            _ => text,
        }
    }

    /// Checks the pack, makes its objects part of the repository and keeps the commits.
    async fn accept(&self, pack: Result<Option<Quarantine>, Refused>) -> Result<Commits, Refused> {
        let pack = pack?;
        let commits = quarantine::check(&self.repository, pack.as_ref(), &self.request.commands).await?;
        if let Some(pack) = pack {
            // Whoever erases waits for this, or is seen by it.
            let _packs = self.repository.0.packs.read().await;
            if let Some(blob) = pack.erased(&self.repository).await? {
                return Err(Refused(blob));
            }
            tracing::debug!(quarantine = %pack.path().display(), "pack accepted");
            pack.migrate().await?;
        }
        if !commits.is_empty() {
            let ids: Vec<Oid> = commits.iter().map(|(_, commit)| *commit).collect();
            let kept = self.repository.keep_all(&ids).await;
            kept.map_err(|error| Refused(format!("the server cannot keep the commits: {error}")))?;
        }
        Ok(commits)
    }

    /// One command, alone on its ref.
    async fn execute(&self, command: &Command, commits: &Commits) -> Result<(), String> {
        if let Some(refused) = &command.refused {
            return Err(refused.clone());
        }
        let Command { old, new, name, .. } = command;
        let (old, new) = (*old, *new);
        let waiting = |name: &str| self.client.line(&format!("waiting for another push to {}", short(name)));
        let _turn = self.repository.turn(name, waiting).await;
        if let Some(new) = new {
            let found = self.repository.at(name).await.map_err(|error| error.to_string())?;
            if found == Some(new) {
                // Another push brought it here while this one waited.
                return Ok(());
            }
            if let (Some(found), true) = (found, name.starts_with("refs/tags/")) {
                return Err(format!("this tag is bound to {found} for good: choose a new name"));
            }
            if found != old {
                return Err("the branch has moved: fetch, then push again".to_owned());
            }
            // Before the pipeline: what it makes cannot be taken back.
            if found.is_none()
                && let Some(other) = self.repository.in_the_way(name).await.map_err(|error| error.to_string())?
            {
                return Err(blocked(name, &other));
            }
            let commit = commits.iter().find(|(id, _)| *id == new).map(|(_, commit)| *commit);
            let commit = commit.ok_or_else(|| format!("{new} was not received"))?;
            if name.starts_with("refs/heads/") {
                return self.bring(Pending { refname: name.clone(), old, new }).await;
            }
            self.pipeline(name, old, commit).await?;
        }
        self.repository.update(Update { name, old, new }).await.map_err(|error| error.to_string())
    }

    /// Brings a branch to a commit by way of the pipeline. A crash after the release leaves a
    /// note, with which the next start moves the branch.
    async fn bring(&self, pending: Pending) -> Result<(), String> {
        let Pending { refname: name, old, new } = &pending;
        let noted = self.repository.note(&pending).await;
        noted.map_err(|error| format!("the server cannot note the push: {error}"))?;
        let moved = match self.pipeline(name, *old, *new).await {
            Ok(()) => self.repository.update(Update { name, old: *old, new: Some(*new) }).await,
            Err(reason) => {
                self.strike(name).await;
                return Err(reason);
            }
        };
        // Where the disk or git failed there is a release without its branch: the note stays.
        if matches!(moved, Ok(()) | Err(RefError::Moved { .. })) {
            self.strike(name).await;
        }
        moved.map_err(|error| error.to_string())
    }

    /// Strikes out the note. One that stays does no harm: whatever moves the branch next strikes
    /// it out first, and a start completes only what has a release.
    async fn strike(&self, name: &str) {
        if let Err(error) = self.repository.strike(name).await {
            tracing::warn!(%error, name, "the note of a push stays");
        }
    }

    /// Runs the pipeline in a task of its own, so that a panic in it is a refusal.
    async fn pipeline(&self, name: &str, old: Option<Oid>, new: Oid) -> Result<(), String> {
        let push = Push {
            project: self.repository.project().to_owned(),
            refname: name.to_owned(),
            old,
            new,
            by: self.by.clone(),
        };
        let (progress, mut lines) = mpsc::channel(PROGRESS);
        let received = self.receiver.received(push, progress);
        let mut task = self.repository.0.shared.tasks.spawn(received);
        let mut open = true;
        let done = loop {
            tokio::select! {
                biased;
                line = lines.recv(), if open => match line {
                    Some(line) => self.client.line(&line),
                    None => open = false,
                },
                done = &mut task => break done,
            }
        };
        // What it said last; whoever still holds the sender is not waited for.
        while let Ok(line) = lines.try_recv() {
            self.client.line(&line);
        }
        done.unwrap_or_else(|error| {
            tracing::error!(%error, name, "the pipeline panicked");
            Err("internal error: see the server's log".to_owned())
        })
    }
}

/// The pushing client, who may have left.
struct Client {
    messages: mpsc::Sender<io::Result<Bytes>>,
    side_band: bool,
}

impl Client {
    /// Shows a line, or several, as `remote: …`.
    fn line(&self, text: &str) {
        if !self.side_band {
            return;
        }
        let mut message = BytesMut::new();
        for line in text.lines() {
            packet::band(&mut message, 2, format!("{}\n", one_line(line, 1000)).as_bytes());
        }
        let _ = self.messages.try_send(Ok(message.freeze()));
    }

    /// Does `work`, with a sign of life from time to time.
    async fn while_waiting<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(KEEP_ALIVE, &mut work).await {
                Ok(done) => return done,
                Err(_) if self.side_band => {
                    // An empty packet on band 1, as git itself sends.
                    let _ = self.messages.try_send(Ok(Bytes::from_static(b"0005\x01")));
                }
                Err(_) => {}
            }
        }
    }

    async fn report(&self, wanted: bool, report: &Bytes) {
        let mut message = BytesMut::new();
        if self.side_band {
            if wanted {
                packet::band(&mut message, 1, report);
            }
            packet::flush(&mut message);
        } else if wanted {
            message.extend_from_slice(report);
        }
        // A client that does not read has the time of a few keep-alives.
        let _ = tokio::time::timeout(KEEP_ALIVE * 8, self.messages.send(Ok(message.freeze()))).await;
    }
}

/// Why `name` cannot be made beside `other`, one of which is a directory of the other.
fn blocked(name: &str, other: &str) -> String {
    let (kind, fix) = if name.starts_with("refs/tags/") {
        ("tag", "choose another name".to_owned())
    } else {
        ("branch", format!("choose another name, or delete `{}` first", short(other)))
    };
    format!("there is a {kind} `{}`, and git cannot have `{}` beside it: {fix}", short(other), short(name))
}

fn short(name: &str) -> &str {
    name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/")).unwrap_or(name)
}
