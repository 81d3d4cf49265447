//! Output of instances: a bounded file with times, rotated once, and reading it back.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use time::OffsetDateTime;
use time::macros::format_description;

/// A file is rotated at this size; two are kept.
const MAX_BYTES: u64 = 8 << 20;
/// Longer lines are cut into pieces of this size.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Out,
    Err,
    Supervisor,
}

/// Appends lines `<RFC 3339 UTC, milliseconds> <out|err|adamant> <text>`.
pub(crate) struct Log {
    path: PathBuf,
    file: Mutex<(File, u64)>,
}

impl Log {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file: Mutex::new((file, size)) })
    }

    /// Writes one line. A full disk loses lines, not the instance.
    pub(crate) fn line(&self, from: From, text: &[u8]) {
        let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        let word = match from {
            From::Out => "out",
            From::Err => "err",
            From::Supervisor => "adamant",
        };
        let now = OffsetDateTime::now_utc().format(&format).unwrap_or_default();
        let mut line = format!("{now} {word} ").into_bytes();
        line.extend(text.iter().filter(|b| !matches!(b, b'\n' | b'\r')));
        line.push(b'\n');
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, size) = &mut *guard;
        if *size + line.len() as u64 > MAX_BYTES
            && std::fs::rename(&self.path, self.path.with_extension("log.1")).is_ok()
            && let Ok(new) = append(&self.path)
        {
            (*file, *size) = (new, 0);
        }
        if file.write_all(&line).is_ok() {
            *size += line.len() as u64;
        }
    }

    /// Copies lines of `source` until it ends.
    pub(crate) fn copy(&self, from: From, source: impl Read) {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) => self.line(from, &line),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// The last `count` lines of a log, oldest first.
pub(crate) fn tail(path: &Path, count: usize) -> Vec<String> {
    let mut lines = last_lines(path, count);
    if lines.len() < count {
        let mut older = last_lines(&path.with_extension("log.1"), count - lines.len());
        older.append(&mut lines);
        lines = older;
    }
    lines
}

fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        // Enough for any number of lines somebody asks for, not for all of a long file.
        let window = (count as u64).saturating_mul(300).clamp(64 * 1024, MAX_BYTES + MAX_LINE_BYTES as u64);
        file.seek(SeekFrom::Start(length.saturating_sub(window)))?;
        let mut bytes = Vec::new();
        file.take(window).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else { return Vec::new() };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Reads lines as they come, over rotations. Asks nothing of the writer.
pub(crate) struct Follow {
    path: PathBuf,
    file: Option<(File, u64)>,
    partial: Vec<u8>,
}

impl Follow {
    /// From now on (`from_end`) or from the start of the file.
    pub(crate) fn new(path: PathBuf, from_end: bool) -> Self {
        let mut follow = Self { path, file: None, partial: Vec::new() };
        if from_end && let Ok(mut file) = File::open(&follow.path) {
            let inode = file.metadata().map(|m| m.ino()).unwrap_or_default();
            if file.seek(SeekFrom::End(0)).is_ok() {
                follow.file = Some((file, inode));
            }
        }
        follow
    }

    /// Whole lines that were written since the last call, at most about a MiB.
    pub(crate) fn poll(&mut self) -> Vec<String> {
        let mut bytes = std::mem::take(&mut self.partial);
        self.read(&mut bytes);
        // Rotated: what was left of the old file is read, the new one begins.
        let inode = std::fs::metadata(&self.path).map(|m| m.ino()).ok();
        if inode.is_some() && inode != self.file.as_ref().map(|(_, inode)| *inode) {
            self.file = File::open(&self.path).ok().zip(inode);
            self.read(&mut bytes);
        }
        let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.partial = bytes.split_off(end);
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }

    fn read(&mut self, bytes: &mut Vec<u8>) {
        if let Some((file, _)) = &mut self.file {
            // An unreadable log has no lines.
            let _ = file.take(1 << 20).read_to_end(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_times_and_are_followed_over_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Log::open(path.clone()).unwrap();
        let mut follow = Follow::new(path.clone(), false);
        log.line(From::Out, b"one\n");
        log.copy(From::Err, &b"two\nthree"[..]);
        let lines = follow.poll();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].ends_with("Z out one") && lines[2].ends_with("Z err three"), "{lines:?}");
        let long = vec![b'x'; 16_000];
        for _ in 0..600 {
            log.line(From::Supervisor, &long);
            follow.poll();
        }
        log.line(From::Out, b"last");
        assert!(follow.poll().last().unwrap().ends_with("out last"));
        assert!(std::fs::metadata(&path).unwrap().len() < MAX_BYTES);
        assert!(path.with_extension("log.1").exists());
        assert_eq!(tail(&path, 2).len(), 2);
    }

    #[test]
    fn long_lines_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path().join("log")).unwrap();
        log.copy(From::Out, &vec![b'y'; MAX_LINE_BYTES * 2 + 1][..]);
        assert_eq!(tail(&dir.path().join("log"), 10).len(), 3);
    }
}
