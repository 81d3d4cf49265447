//! The last steps before the program, in the process that becomes it.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::CpuSet;

use crate::error::{Failure, Stage};
use crate::raw;
use crate::spec::{Limits, Spec};

/// Open descriptors of a process when the caller sets no number.
const OPEN_FILES: u64 = 4096;

/// Stack of a main thread, bytes: what distributions set, whatever this host has.
const STACK_BYTES: u64 = 8 << 20;

/// Becomes the program; returns only to say why not.
pub(crate) fn execute(spec: &Spec, stdout: Option<&OwnedFd>, stderr: Option<&OwnedFd>) -> Failure {
    match prepare(spec, stdout, stderr) {
        Ok((path, argv, env)) => {
            let errno = raw::execute(&path, &argv, &env);
            Failure::new(Stage::Exec, spec.argv[0].clone(), errno)
        }
        Err(failure) => failure,
    }
}

type Strings = Vec<CString>;

fn prepare(
    spec: &Spec,
    stdout: Option<&OwnedFd>,
    stderr: Option<&OwnedFd>,
) -> Result<(CString, Strings, Strings), Failure> {
    let process = |object: &'static str| move |errno| Failure::new(Stage::Process, object, errno);
    rustix::process::setsid().map_err(process("session"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let null =
        rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(process("/dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(process("standard input"))?;
    rustix::stdio::dup2_stdout(stdout.unwrap_or(&null)).map_err(process("standard output"))?;
    rustix::stdio::dup2_stderr(stderr.unwrap_or(&null)).map_err(process("standard error"))?;
    rustix::process::chdir(spec.cwd.as_str())
        .map_err(|errno| Failure::new(Stage::Directory, spec.cwd.clone(), errno))?;
    if let Some(count) = spec.cpus {
        processors(count).map_err(|errno| Failure::new(Stage::Limits, "processors", errno))?;
    }
    if !spec.aslr {
        raw::fixed_addresses().map_err(|errno| Failure::new(Stage::Limits, "address layout", errno))?;
    }
    let string = |text: &String| {
        CString::new(text.as_str()).map_err(|_| Failure::text(Stage::Exec, text.clone(), "holds a zero byte"))
    };
    let path = spec.argv.first().map_or_else(|| Ok(CString::default()), string)?;
    let argv = spec.argv.iter().map(string).collect::<Result<_, _>>()?;
    let env = spec.env.iter().map(|(name, value)| string(&format!("{name}={value}")));
    let env = env.collect::<Result<_, _>>()?;
    raw::close_on_exec_from(3).map_err(process("descriptors"))?;
    raw::reset_signals();
    // Last: nothing of ours may strike them.
    resources(&spec.limits)?;
    Ok((path, argv, env))
}

/// Leaves the first so many of the processors this process may use, counted from one that differs
/// from run to run, so that small sandboxes do not all share the first.
fn processors(count: u32) -> Result<(), Errno> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let start = rustix::thread::sched_getcpu();
    let start = usable.iter().position(|cpu| *cpu == start).unwrap_or(0);
    let mut chosen = CpuSet::new();
    for cpu in usable.iter().cycle().skip(start).take(usable.len().min(count as usize)) {
        chosen.set(*cpu);
    }
    rustix::thread::sched_setaffinity(None, &chosen)
}

fn resources(limits: &Limits) -> Result<(), Failure> {
    set(Resource::Core, "core size", 0, 0)?;
    set(Resource::Stack, "stack", STACK_BYTES, u64::MAX)?;
    let files = limits.open_files.unwrap_or(OPEN_FILES);
    set(Resource::Nofile, "open files", files, files)?;
    if let Some(seconds) = limits.cpu_seconds {
        // The signal at the first, which tells what happened; the end a second later.
        set(Resource::Cpu, "processor seconds", seconds, seconds.saturating_add(1))?;
    }
    if let Some(bytes) = limits.file_bytes {
        set(Resource::Fsize, "file size", bytes, bytes)?;
    }
    if let Some(processes) = limits.processes
        && counts_per_namespace()
    {
        // Where no cgroup does it. The first process counts, too.
        let processes = processes.saturating_add(1);
        set(Resource::Nproc, "processes", processes, processes)?;
    }
    Ok(())
}

/// Sets a limit, or keeps the host's where that is lower already.
fn set(resource: Resource, name: &str, soft: u64, hard: u64) -> Result<(), Failure> {
    let ceiling = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let bound = |value: u64| Some(value.min(ceiling)).filter(|value| *value != u64::MAX);
    let limit = Rlimit { current: bound(soft), maximum: bound(hard) };
    rustix::process::setrlimit(resource, limit).map_err(|errno| Failure::new(Stage::Limits, name, errno))
}

/// Whether the kernel counts a user's processes in each user namespace apart (Linux 5.14). Before,
/// the limit would count all of the user's processes on the host.
pub(crate) fn counts_per_namespace() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    at_least(&release, (5, 14))
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers =
        release.split(|character: char| !character.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_as_numbers() {
        assert!(at_least("6.1.0-40-amd64", (5, 14)));
        assert!(at_least("5.14", (5, 14)));
        assert!(!at_least("5.9.16", (5, 14)));
        assert!(!at_least("4.19.0", (5, 14)));
        assert!(!at_least("", (5, 14)));
    }
}
