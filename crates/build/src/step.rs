//! Runs one step in the sandbox and keeps what it says.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use adamant_recipe::Artifact;
use adamant_sandbox::{Access, Exit, Fds, Kind, Limit, Limits, Mount, Outcome, Sandbox, SandboxError, Source, Spec};

use crate::abi;
use crate::missing;
use crate::network::{self, Wanted};

/// Takes each line as it is written. Called on a blocking thread; must not block for long.
pub type Sink = Arc<dyn Fn(&str) + Send + Sync>;

/// Bytes of output that are kept.
const MAX_LOG: usize = 8 << 20;
/// Bytes of a line that are shown; longer ones are cut into several.
const MAX_LINE: usize = 4096;
/// Last lines that an error repeats.
const TAIL: usize = 20;
/// Last lines that are searched for the network.
const SEARCHED: usize = 200;
/// Processes and threads of one step.
const PROCESSES: u64 = 4096;
/// Size of one file a step writes.
const FILE_BYTES: u64 = 16 << 30;

/// What is varied between builds. The step cannot ask for any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conditions {
    /// Whether addresses are randomized.
    pub aslr: bool,
    /// Processors used, if fewer than the artifact asks for.
    pub cpus: Option<u32>,
    /// Whether directories are filled last name first.
    pub reverse: bool,
}

impl Conditions {
    /// Of a first build: all that can be fixed is fixed.
    pub const FIXED: Self = Self { aslr: false, cpus: None, reverse: false };
    /// Of a rebuild.
    pub const VARIED: Self = Self { aslr: true, cpus: Some(1), reverse: true };
}

/// Why a step gave no outputs.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It could not be started.
    #[error("the build cannot be started: {0}")]
    Sandbox(#[from] SandboxError),
    /// No shell.
    #[error("the toolchain holds no /usr/bin/sh; add `dash` to `toolchain` and run `adamant lock`")]
    NoShell,
    /// It failed where it wanted the network.
    #[error(
        "the build wanted the network: {wanted}; steps run without it: declare the file under `sources`, or the \
         package in the native lock, and run `adamant lock`"
    )]
    Network {
        /// What it asked for.
        wanted: Wanted,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// It struck a limit.
    #[error("the build was stopped at its limit of {limit} ({value}); raise `{field}` in the recipe")]
    Limit {
        /// Which.
        limit: Limit,
        /// What it is.
        value: String,
        /// What to change.
        field: &'static str,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// It failed where the disk had no room for it.
    #[error("the build command {how} while the disk was full{}", shown(tail))]
    Full {
        /// Exit status or signal.
        how: String,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// It failed.
    #[error("the build command {how}{}{}", missing.as_deref().map(wanting).unwrap_or_default(), shown(tail))]
    Failed {
        /// Exit status or signal.
        how: String,
        /// A program it did not find, or "a program" if it did not say which.
        missing: Option<String>,
        /// Its last lines.
        tail: Vec<String>,
    },
    /// Ours.
    #[error("cannot read the output of the build: {0}")]
    Output(#[source] io::Error),
}

/// Room that a step which failed for want of it may have left: what it removed when it ended.
const LEFT: u64 = 256 << 20;
/// With less room than this no step gets far.
const LITTLE: u64 = 1 << 20;

impl StepError {
    /// The same, or that the disk is full, given the bytes that are free.
    pub(crate) fn on_disk(self, room: Option<u64>) -> Self {
        match (self, room) {
            (Self::Failed { how, tail, .. }, Some(room)) if room < LITTLE || (room < LEFT && says_full(&tail)) => {
                Self::Full { how, tail }
            }
            (other, _) => other,
        }
    }
}

fn says_full(tail: &[String]) -> bool {
    tail.iter().any(|line| line.contains("No space left on device") || line.contains("Disk quota exceeded"))
}

fn wanting(missing: &str) -> String {
    format!(": {missing} is missing; add its Debian package to `toolchain` and run `adamant lock`")
}

fn shown(tail: &[String]) -> String {
    if tail.is_empty() { ", without a word".to_owned() } else { format!("; its last lines:\n  {}", tail.join("\n  ")) }
}

/// Directories of one run on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places<'a> {
    pub(crate) root: &'a Path,
    pub(crate) build: &'a Path,
    pub(crate) home: &'a Path,
    pub(crate) vendor: &'a Path,
}

/// What a run said, and how it went.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The output, first [`MAX_LOG`] bytes.
    pub(crate) log: Vec<u8>,
    /// Whether its outputs may be used.
    pub(crate) result: Result<Outcome, StepError>,
}

/// Runs the build command. Blocks until every process of it is gone.
pub(crate) fn run(
    sandbox: &Sandbox,
    artifact: &Artifact,
    env: Vec<(String, String)>,
    places: Places<'_>,
    conditions: Conditions,
    sink: &Sink,
) -> Ran {
    let bind = |source: &Path, target: &str, access| Mount::Bind {
        source: Source::Path(source.to_owned()),
        target: target.to_owned(),
        access,
    };
    let spec = Spec {
        root: places.root.to_owned(),
        mounts: vec![
            Mount::Tmpfs { target: "/tmp".to_owned(), size_bytes: abi::TMP_BYTES, mode: 0o1777 },
            bind(places.build, abi::WORK, Access::Writable),
            bind(places.home, abi::HOME, Access::Writable),
            bind(places.vendor, abi::VENDOR, Access::ReadOnly),
        ],
        argv: vec!["/usr/bin/sh".to_owned(), "-euc".to_owned(), artifact.build.clone()],
        env,
        cwd: abi::WORK.to_owned(),
        hostname: abi::HOSTNAME.to_owned(),
        uid: abi::ID,
        gid: abi::ID,
        limits: Limits {
            memory_bytes: Some(artifact.memory_mb << 20),
            processes: Some(PROCESSES),
            wall_ms: Some(artifact.timeout_s.saturating_mul(1000)),
            file_bytes: Some(FILE_BYTES),
            ..Limits::default()
        },
        cpus: Some(conditions.cpus.unwrap_or(artifact.cpus).min(artifact.cpus).max(1)),
        port: None,
        aslr: conditions.aslr,
        kind: Kind::Build,
    };
    let mut lines = Lines::new(sink.clone());
    let result = listen(sandbox, &spec, &mut lines);
    let result = result.and_then(|outcome| judge(artifact, outcome, &lines));
    Ran { log: lines.into_log(), result }
}

fn listen(sandbox: &Sandbox, spec: &Spec, lines: &mut Lines) -> Result<Outcome, StepError> {
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| StepError::Output(errno.into()))?;
    // Both streams through one pipe: their lines keep their order.
    let second: OwnedFd = writer.try_clone().map_err(StepError::Output)?;
    let child = sandbox.spawn(spec, Fds { stdout: Some(writer), stderr: Some(second), ..Fds::default() })?;
    std::thread::scope(|scope| {
        let listener = scope.spawn(move || lines.read(&mut File::from(reader)));
        let outcome = child.wait();
        // Every writer is gone with the last process, so the listener comes to an end.
        let heard = listener.join().unwrap_or_else(|_| Err(io::Error::other("the listening thread panicked")));
        match outcome {
            Err(SandboxError::Exec { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(StepError::NoShell)
            }
            Err(error) => Err(error.into()),
            Ok(outcome) => heard.map(|()| outcome).map_err(StepError::Output),
        }
    })
}

fn judge(artifact: &Artifact, outcome: Outcome, lines: &Lines) -> Result<Outcome, StepError> {
    if outcome.success() && outcome.limit.is_none_or(|limit| limit != Limit::Wall) {
        return Ok(outcome);
    }
    let tail = lines.tail();
    if let Some(limit) = outcome.limit {
        let (value, field) = match limit {
            Limit::Memory => (format!("{} MiB", artifact.memory_mb), "memory_mb"),
            Limit::Wall | Limit::Cpu => (format!("{} s", artifact.timeout_s), "timeout_s"),
            Limit::Processes => (format!("{PROCESSES} processes"), "cpus"),
            Limit::FileSize => (format!("{} GiB", FILE_BYTES >> 30), "files"),
        };
        return Err(StepError::Limit { limit, value, field, tail });
    }
    let last: Vec<&String> = lines.last.iter().collect();
    if let Some(wanted) = network::wanted(&last) {
        return Err(StepError::Network { wanted, tail });
    }
    let how = match outcome.exit {
        Exit::Code(code) => format!("exited with {code}"),
        Exit::Signal(signal) => format!("was ended by signal {signal}"),
    };
    let missing = missing::program(&last, outcome.exit == Exit::Code(127));
    Err(StepError::Failed { how, missing, tail })
}

/// Cuts output into lines, keeps its beginning and its end.
struct Lines {
    sink: Sink,
    log: Vec<u8>,
    dropped: u64,
    partial: Vec<u8>,
    last: VecDeque<String>,
}

impl Lines {
    fn new(sink: Sink) -> Self {
        Self { sink, log: Vec::new(), dropped: 0, partial: Vec::new(), last: VecDeque::new() }
    }

    fn read(&mut self, pipe: &mut impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => self.take(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if !self.partial.is_empty() {
            self.line();
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = (MAX_LOG - self.log.len()).min(bytes.len());
        self.log.extend_from_slice(&bytes[..room]);
        self.dropped += (bytes.len() - room) as u64;
        for &byte in bytes {
            if byte == b'\n' {
                self.line();
            } else {
                self.partial.push(byte);
                if self.partial.len() >= MAX_LINE {
                    self.line();
                }
            }
        }
    }

    fn line(&mut self) {
        let bytes = std::mem::take(&mut self.partial);
        let text = String::from_utf8_lossy(&bytes);
        // A terminal must not be steered by what a build prints.
        let line: String = text.trim_end_matches('\r').chars().filter(|c| *c == '\t' || !c.is_control()).collect();
        (self.sink)(&line);
        if self.last.len() == SEARCHED {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    fn tail(&self) -> Vec<String> {
        self.last.iter().skip(self.last.len().saturating_sub(TAIL)).cloned().collect()
    }

    fn into_log(mut self) -> Vec<u8> {
        if self.dropped > 0 {
            self.log.extend_from_slice(format!("\n[{} more bytes of output are not kept]\n", self.dropped).as_bytes());
        }
        self.log
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn hear(bytes: &[u8]) -> (Vec<String>, Vec<u8>, Vec<String>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let copy = heard.clone();
        let mut lines = Lines::new(Arc::new(move |line: &str| copy.lock().unwrap().push(line.to_owned())));
        lines.read(&mut &bytes[..]).unwrap();
        let tail = lines.tail();
        (heard.lock().unwrap().clone(), lines.into_log(), tail)
    }

    #[test]
    fn cuts_lines_and_drops_control_characters() {
        let (heard, log, _) = hear(b"one\r\n\x1b[31mred\ttab\nlast \xff");
        assert_eq!(heard, ["one", "[31mred\ttab", "last \u{fffd}"]);
        assert_eq!(log, b"one\r\n\x1b[31mred\ttab\nlast \xff");
    }

    #[test]
    fn a_failure_on_a_full_disk_is_the_disk_s() {
        let check = |line: &str, room: Option<u64>| {
            let failed = StepError::Failed { how: "exited with 2".into(), missing: None, tail: vec![line.to_owned()] };
            let error = failed.on_disk(room);
            assert!(error.to_string().contains(line));
            matches!(error, StepError::Full { .. })
        };
        let said = "as: out.o: No space left on device";
        assert!(check("error", Some(0)) && check(said, Some(0)) && check(said, Some(100 << 20)));
        assert!(!check("error", Some(100 << 20)) && !check("error", None));
        // The step's own /tmp was full.
        assert!(!check(said, Some(10 << 30)));
    }

    #[test]
    fn a_missing_program_is_said_before_the_last_lines() {
        let (how, tail) = ("exited with 127".to_owned(), vec!["sh: 1: bison: not found".to_owned()]);
        let error = StepError::Failed { how, missing: Some("`bison`".to_owned()), tail };
        assert_eq!(
            error.to_string(),
            "the build command exited with 127: `bison` is missing; add its Debian package to `toolchain` and run \
             `adamant lock`; its last lines:\n  sh: 1: bison: not found"
        );
    }

    #[test]
    fn bounds_lines_log_and_tail() {
        let (heard, log, tail) = hear(&vec![b'x'; MAX_LOG + 100]);
        assert!(heard.iter().all(|line| line.len() <= MAX_LINE));
        assert!(log.len() < MAX_LOG + 100 && log.ends_with(b"[100 more bytes of output are not kept]\n"));
        assert_eq!(tail.len(), TAIL);
    }
}
