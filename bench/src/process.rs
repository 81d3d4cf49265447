//! Programs that are waited for, each no longer than its time.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Lines kept of one program.
const MAX_LINES: usize = 10_000;
/// Longest line read, bytes.
const MAX_LINE: u64 = 1 << 16;

/// What a program did that ended well.
pub(crate) struct Ran {
    /// Start to exit.
    pub(crate) took: Duration,
    /// Lines of its standard error, each with the time since the start.
    pub(crate) lines: Vec<(Duration, String)>,
    /// Its standard output.
    pub(crate) out: String,
}

impl Ran {
    /// When the first line came that holds `text`.
    pub(crate) fn when(&self, text: &str) -> Option<Duration> {
        self.lines.iter().find(|(_, line)| line.contains(text)).map(|(at, _)| *at)
    }
}

/// Runs a program to its end, which must be a success within `limit`.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Ran> {
    let shown = format!("{} {}", command.get_program().display(), arguments(command));
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let (send, lines) = mpsc::channel();
    for (is_error, stream) in [
        (true, child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>)),
        (false, child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>)),
    ] {
        let (send, Some(stream)) = (send.clone(), stream) else { continue };
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            // Both of git's line ends count: progress lines end with a carriage return.
            while (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send((is_error, begin.elapsed(), text)).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    drop(send);
    let mut ran = Ran { took: Duration::ZERO, lines: Vec::new(), out: String::new() };
    loop {
        match lines.recv_timeout(limit.saturating_sub(begin.elapsed())) {
            Ok((true, at, line)) if ran.lines.len() < MAX_LINES => ran.lines.push((at, line)),
            Ok((false, _, line)) if ran.out.len() < MAX_LINES * 100 => {
                ran.out.push_str(&line);
                ran.out.push('\n');
            }
            Ok(_) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                bail!("`{shown}` took more than {} s", limit.as_secs());
            }
        }
    }
    let status = child.wait()?;
    ran.took = begin.elapsed();
    if !status.success() {
        let last: Vec<&str> = ran.lines.iter().rev().take(8).rev().map(|(_, line)| line.as_str()).collect();
        bail!("`{shown}` ended with {status}: {}", last.join(" / "));
    }
    Ok(ran)
}

fn arguments(command: &Command) -> String {
    command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Whether a program is installed.
pub(crate) fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
