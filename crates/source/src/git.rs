//! Running git: a clean environment, bounded time, bounded output, bounded memory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;

use crate::GitError;

/// Where programs are looked up; the search path of whoever runs us has no influence.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// How much of what git complains about is kept.
const STDERR_BYTES: u64 = 64 << 10;
/// The longest record any of the record formats has (an object id, sizes and a path).
const RECORD_BYTES: usize = 64 << 10;

/// A git program and the repository it works on.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    program: Arc<PathBuf>,
    dir: Arc<PathBuf>,
    /// New objects go here and are invisible outside of it.
    quarantine: Option<Arc<PathBuf>>,
    time: Duration,
    memory_bytes: u64,
}

impl Git {
    /// `dir` is absolute.
    pub(crate) fn new(program: PathBuf, dir: PathBuf, time: Duration, memory_bytes: u64) -> Self {
        Self { program: Arc::new(program), dir: Arc::new(dir), quarantine: None, time, memory_bytes }
    }

    /// The same repository with an object directory of its own in front.
    pub(crate) fn quarantined(&self, objects: PathBuf) -> Self {
        Self { quarantine: Some(Arc::new(objects)), ..self.clone() }
    }

    /// The same with another bound on wall time.
    pub(crate) fn within(&self, time: Duration) -> Self {
        Self { time, ..self.clone() }
    }

    /// The bound on wall time.
    pub(crate) fn time(&self) -> Duration {
        self.time
    }

    /// The bare repository.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command with nothing inherited: no `GIT_*`, no home, no configuration but the
    /// repository's own, which is ours.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.bare_command();
        command.arg(flag("--git-dir=", &self.dir));
        // Only protected configuration may say this; the directory is ours whoever owns it.
        command.args(["-c", "safe.directory=*", "--no-pager", "--literal-pathspecs"]).args(args);
        if let Some(objects) = &self.quarantine {
            command.env("GIT_OBJECT_DIRECTORY", objects.as_path());
            command.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", quoted(&self.dir.join("objects")));
            command.env("GIT_QUARANTINE_PATH", objects.as_path());
        }
        command
    }

    fn bare_command(&self) -> Command {
        let mut command = Command::new(self.program.as_path());
        command.env_clear().current_dir("/").envs([
            ("PATH", PATH),
            ("HOME", "/nonexistent"),
            ("XDG_CONFIG_HOME", "/nonexistent"),
            ("LC_ALL", "C"),
            ("TZ", "UTC"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ALLOW_PROTOCOL", "none"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
        ]);
        command
    }

    /// Starts `command` with pipes on all three streams. Dropping the child ends it.
    pub(crate) fn spawn(&self, command: Command) -> Result<Child, GitError> {
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let child =
            command.spawn().map_err(|source| GitError::Spawn { program: self.program.to_path_buf(), source })?;
        self.bound_memory(child.id());
        Ok(child)
    }

    /// The same for a blocking thread.
    pub(crate) fn spawn_blocking(&self, mut command: Command) -> Result<std::process::Child, GitError> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child =
            command.spawn().map_err(|source| GitError::Spawn { program: self.program.to_path_buf(), source })?;
        self.bound_memory(Some(child.id()));
        Ok(child)
    }

    /// A delta may claim any size and git allocates it: the address space is what bounds it.
    fn bound_memory(&self, pid: Option<u32>) {
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return };
        let bound = Some(self.memory_bytes);
        if let Err(error) = prlimit(Some(pid), Resource::As, Rlimit { current: bound, maximum: bound }) {
            // It may have ended already; a lower limit of our own holds anyway.
            tracing::debug!(%error, "memory of git is not bounded");
        }
    }

    /// Checks that the program is there and new enough (`core.fsync` came with 2.36).
    pub(crate) async fn check_version(&self) -> Result<(), GitError> {
        let mut command = self.bare_command();
        command.arg("version");
        let output = self.finish("version", command, &[], 4096).await?;
        let text = String::from_utf8_lossy(&output).trim().to_owned();
        let mut numbers =
            text.strip_prefix("git version ").unwrap_or_default().split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version < (2, 36) {
            return Err(GitError::Version { program: self.program.to_path_buf(), found: text });
        }
        Ok(())
    }

    /// Runs to the end and returns standard output.
    pub(crate) async fn run(&self, args: &[&str], input: &[u8], limit: usize) -> Result<Vec<u8>, GitError> {
        self.finish(args.first().copied().unwrap_or_default(), self.command(args), input, limit).await
    }

    /// Runs `command`, which is named `name` in errors.
    pub(crate) async fn finish(
        &self,
        name: &str,
        command: Command,
        input: &[u8],
        limit: usize,
    ) -> Result<Vec<u8>, GitError> {
        let mut output = Vec::new();
        self.pump(name, command, input, async |stdout| {
            let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
            stdout.take(bound).read_to_end(&mut output).await.map_err(|source| io(name, source))?;
            if output.len() > limit {
                return Err(GitError::Output { command: name.to_owned(), limit });
            }
            Ok(())
        })
        .await?;
        Ok(output)
    }

    /// Runs to the end and hands each record, without its delimiter, to `on`. An error of `on`
    /// ends git.
    pub(crate) async fn records<E: From<GitError>>(
        &self,
        args: &[&str],
        input: &[u8],
        delimiter: u8,
        mut on: impl FnMut(&[u8]) -> Result<(), E> + Send,
    ) -> Result<(), E> {
        let name = args.first().copied().unwrap_or_default();
        self.pump(name, self.command(args), input, async |stdout| {
            let mut reader = BufReader::with_capacity(64 << 10, stdout);
            let mut record = Vec::new();
            loop {
                record.clear();
                let bound = RECORD_BYTES as u64 + 1;
                let read = (&mut reader).take(bound).read_until(delimiter, &mut record).await;
                if read.map_err(|source| io(name, source))? == 0 {
                    return Ok(());
                }
                if record.len() > RECORD_BYTES {
                    return Err(GitError::Output { command: name.to_owned(), limit: RECORD_BYTES }.into());
                }
                if record.last() == Some(&delimiter) {
                    record.pop();
                }
                on(&record)?;
            }
        })
        .await
    }

    /// Feeds `input`, lets `consume` read, waits. What git says on standard error becomes the
    /// error if it fails.
    pub(crate) async fn pump<E: From<GitError>>(
        &self,
        name: &str,
        command: Command,
        input: &[u8],
        consume: impl AsyncFnOnce(&mut tokio::process::ChildStdout) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut child = self.spawn(command)?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = streams else {
            return Err(io(name, std::io::Error::other("no pipes")).into());
        };
        let feed = async move {
            // A git that stops reading says why on its standard error and in its exit code.
            let _ = stdin.write_all(input).await;
            drop(stdin);
            Ok::<_, E>(())
        };
        let said = async { Ok::<_, E>(complaint(&mut stderr).await) };
        let work = async {
            // A consumer that has seen enough ends git, which may have much more to say.
            let ((), (), said) = tokio::try_join!(feed, consume(&mut stdout), said)?;
            let status = child.wait().await.map_err(|source| io(name, source))?;
            if status.success() { Ok(()) } else { Err(failed(name, &said, status).into()) }
        };
        match tokio::time::timeout(self.time, work).await {
            Ok(done) => done,
            Err(_) => Err(GitError::Timeout { command: name.to_owned(), limit: self.time }.into()),
        }
    }
}

/// Reads a bounded part of what git complains about, and the rest away.
pub(crate) async fn complaint(stderr: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let _ = (&mut *stderr).take(STDERR_BYTES).read_to_end(&mut text).await;
    let _ = tokio::io::copy(stderr, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// The error of a git that ended without success.
pub(crate) fn failed(name: &str, complaint: &str, status: std::process::ExitStatus) -> GitError {
    let lines: Vec<&str> = complaint.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let message = if lines.is_empty() { format!("ended with {status}") } else { lines.join("; ") };
    GitError::Failed { command: name.to_owned(), code: status.code(), message: one_line(&message, 400) }
}

/// An I/O error of a pipe to git.
pub(crate) fn io(name: &str, source: std::io::Error) -> GitError {
    GitError::Io { command: name.to_owned(), source }
}

/// The error for output that is not in the documented format.
pub(crate) fn unexpected(name: &str, line: &[u8]) -> GitError {
    GitError::Unexpected { command: name.to_owned(), line: one_line(&String::from_utf8_lossy(line), 200) }
}

/// `text` without control characters and at most `limit` characters long: fit for a terminal
/// and for one line of a protocol.
pub(crate) fn one_line(text: &str, limit: usize) -> String {
    let mut chars = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = chars.by_ref().take(limit).collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

fn flag(name: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(path);
    flag
}

/// A path in the form that `GIT_ALTERNATE_OBJECT_DIRECTORIES` takes for paths with colons.
fn quoted(path: &Path) -> OsString {
    let mut bytes = vec![b'"'];
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'"' | b'\\') {
            bytes.push(b'\\');
        }
        bytes.push(byte);
    }
    bytes.push(b'"');
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_one_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m\n", 100), "a b [31m");
        assert_eq!(one_line("abcdef", 3), "abc…");
    }

    #[test]
    fn paths_are_quoted_for_git() {
        assert_eq!(quoted(Path::new("/a:b/\"c\\")), OsString::from(r#""/a:b/\"c\\""#));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let git = Git::new("/nonexistent/git".into(), "/".into(), Duration::from_secs(1), 1 << 30);
        let error = git.check_version().await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/git"), "{error}");
    }
}
