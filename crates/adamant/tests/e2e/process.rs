//! Programs: run to their end with their output, or kept running with their log.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything that is expected to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A program that ended.
pub(crate) struct Ended {
    /// Exit code; -1 if a signal ended it.
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The standard output of a program that succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self.out
    }

    /// Everything it said, of a program that ended with `code`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        let text = format!("{}{}", self.out, self.err);
        assert_eq!(self.code, code, "{text}");
        text
    }
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Ended {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    Ended {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether a program of this name is installed.
pub(crate) fn installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says by name what is not tested, and why.
pub(crate) fn skipped(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
}

/// Asks until the answer is there.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A point of the server's log at which it is to die.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trap {
    pub(crate) point: &'static str,
    /// Which occurrence, from 1.
    pub(crate) nth: usize,
}

#[derive(Default)]
struct Heard {
    lines: Vec<String>,
    trap: Option<Trap>,
    sprung: bool,
    closed: bool,
}

/// The lines a program writes, as they come.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<(Mutex<Heard>, Condvar)>);

impl Lines {
    /// Reads a stream in a thread of its own. `victim` dies when a trap springs.
    fn follow(stream: impl Read + Send + 'static, victim: u32) -> Self {
        let lines = Self::default();
        let heard = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).into_owned();
                let mut state = heard.lock();
                let mut spring = false;
                if let Some(trap) = state.trap.as_mut()
                    && line.contains(&format!("\"point\":\"{}\"", trap.point))
                {
                    trap.nth -= 1;
                    spring = trap.nth == 0;
                }
                if spring {
                    kill(victim, Signal::KILL);
                    state.trap = None;
                    state.sprung = true;
                }
                state.lines.push(line);
                drop(state);
                heard.0.1.notify_all();
            }
            heard.lock().closed = true;
            heard.0.1.notify_all();
        });
        lines
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.0.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The first line that fits, waiting for it; `None` when the stream ends before.
    pub(crate) fn wait(&self, fits: impl Fn(&str) -> bool) -> Option<String> {
        let begin = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.iter().find(|line| fits(line)) {
                return Some(line.clone());
            }
            if state.closed || begin.elapsed() > PATIENCE {
                return None;
            }
            state = self.0.1.wait_timeout(state, Duration::from_millis(200)).map_or_else(|e| e.into_inner().0, |s| s.0);
        }
    }

    pub(crate) fn set_trap(&self, trap: Trap) {
        let mut state = self.lock();
        state.trap = Some(trap);
        state.sprung = false;
    }

    pub(crate) fn sprung(&self) -> bool {
        self.lock().sprung
    }

    /// Everything so far, for messages.
    pub(crate) fn text(&self) -> String {
        self.lock().lines.join("\n")
    }
}

/// Sends a signal; a process that is gone is fine.
pub(crate) fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// A program that runs in the background; it dies with its owner.
pub(crate) struct Background {
    pub(crate) child: Child,
    pub(crate) out: Lines,
    pub(crate) err: Lines,
}

impl Background {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        let pid = child.id();
        let out = Lines::follow(child.stdout.take().unwrap(), pid);
        let err = Lines::follow(child.stderr.take().unwrap(), pid);
        Self { child, out, err }
    }

    /// Exit code, waiting for the end; -1 if a signal ended it.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> i32 {
        wait_for("the end of a program", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }

    pub(crate) fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.child.id(), signal);
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes whose command line holds all of `words`.
pub(crate) fn processes(words: &[&str]) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if !line.is_empty() && words.iter().all(|word| line.contains(word)) {
            found.push(pid);
        }
    }
    found
}

/// Copies a directory as it is; `links` shares the files instead.
pub(crate) fn copy(from: &Path, to: &Path, links: bool) {
    let mode = if links { "-al" } else { "-a" };
    run(Command::new("cp").arg(mode).arg(from).arg(to)).ok();
}
