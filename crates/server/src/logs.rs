//! Build logs: one append-only file a release, readable while it grows.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;

use crate::error::Problem;

/// Most bytes kept of one log.
const MAX_LOG: u64 = 64 << 20;
/// Longest line kept, in bytes.
const MAX_LINE: usize = 16 << 10;
/// How often a follower looks for more.
const POLL: Duration = Duration::from_millis(200);

/// All build logs below one directory.
pub(crate) struct Logs {
    dir: PathBuf,
    /// Logs being written, with the number of their writers.
    open: Arc<Mutex<HashMap<PathBuf, usize>>>,
}

/// Appends to a log. While one lives, followers wait for more.
pub(crate) struct Writer {
    file: Mutex<(File, u64)>,
    path: PathBuf,
    open: Arc<Mutex<HashMap<PathBuf, usize>>>,
}

/// A log to read.
pub(crate) struct Log {
    path: PathBuf,
    open: Arc<Mutex<HashMap<PathBuf, usize>>>,
}

impl Logs {
    pub(crate) fn open(dir: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), open: Arc::default() })
    }

    fn path(&self, project: &str, number: u64) -> PathBuf {
        self.dir.join(project).join(format!("{number}.log"))
    }

    /// Opens a release's log to append; attempts follow each other in it.
    pub(crate) fn writer(&self, project: &str, number: u64) -> Result<Writer, Problem> {
        let path = self.path(project, number);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = File::options().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        *lock(&self.open).entry(path.clone()).or_default() += 1;
        Ok(Writer { file: Mutex::new((file, size)), path, open: Arc::clone(&self.open) })
    }

    /// A release's log, empty if nothing was written.
    pub(crate) fn reader(&self, project: &str, number: u64) -> Log {
        Log { path: self.path(project, number), open: Arc::clone(&self.open) }
    }
}

impl Log {
    /// The bytes, and with `follow` what is added until writers are done.
    pub(crate) fn stream(self, follow: bool) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        let state = (self, 0_u64, follow);
        futures_util::stream::unfold(state, |(log, mut at, follow)| async move {
            loop {
                // Looked at before reading: what a writer adds before it ends is then read.
                let growing = follow && log.is_open();
                let path = log.path.clone();
                let read = tokio::task::spawn_blocking(move || chunk(&path, at)).await;
                match read {
                    Ok(Ok(bytes)) if !bytes.is_empty() => {
                        at += bytes.len() as u64;
                        return Some((Ok(bytes), (log, at, follow)));
                    }
                    Ok(Ok(_)) if growing => tokio::time::sleep(POLL).await,
                    Ok(Err(error)) => return Some((Err(error), (log, u64::MAX, false))),
                    Ok(Ok(_)) | Err(_) => return None,
                }
            }
        })
    }

    fn is_open(&self) -> bool {
        lock(&self.open).contains_key(&self.path)
    }
}

/// At most 64 KiB from `at`; a rotated file is read from its beginning.
fn chunk(path: &Path, at: u64) -> std::io::Result<Bytes> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Bytes::new()),
        Err(error) => return Err(error),
    };
    if at == u64::MAX {
        return Ok(Bytes::new());
    }
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(64 << 10).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

impl Writer {
    /// Adds a line. A log that cannot be written must not stop a build: the failure is told once
    /// in the server's own log.
    pub(crate) fn line(&self, line: &str) {
        let mut guard = lock(&self.file);
        let (file, size) = &mut *guard;
        if *size >= MAX_LOG {
            return;
        }
        let cut = line.char_indices().map(|(i, _)| i).take_while(|i| *i <= MAX_LINE).last().unwrap_or(0);
        let mut text: String = if line.len() > MAX_LINE { format!("{} […]", &line[..cut]) } else { line.to_owned() };
        text.push('\n');
        *size += text.len() as u64;
        if *size >= MAX_LOG {
            text.push_str("[the log is full; the rest is dropped]\n");
        }
        if let Err(error) = file.write_all(text.as_bytes()) {
            tracing::warn!(%error, path = %self.path.display(), "build log");
            *size = MAX_LOG;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(count) = open.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.path);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    async fn read(log: Log, follow: bool) -> String {
        let parts: Vec<_> = log.stream(follow).map(|part| part.unwrap().to_vec()).collect().await;
        String::from_utf8(parts.concat()).unwrap()
    }

    #[tokio::test]
    async fn a_follower_sees_lines_until_the_writer_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        let writer = logs.writer("shop", 1).unwrap();
        writer.line("one");
        let follower = tokio::spawn(read(logs.reader("shop", 1), true));
        tokio::time::sleep(POLL * 2).await;
        writer.line("two");
        drop(writer);
        assert_eq!(follower.await.unwrap(), "one\ntwo\n");
        assert_eq!(read(logs.reader("shop", 2), true).await, "");
    }

    #[tokio::test]
    async fn long_lines_are_cut_between_characters() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        logs.writer("shop", 1).unwrap().line(&"ä".repeat(MAX_LINE));
        let text = read(logs.reader("shop", 1), false).await;
        assert!(text.ends_with(" […]\n") && text.len() < MAX_LINE + 20);
    }
}
