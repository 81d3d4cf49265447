//! Memory and process ceilings over all processes of a sandbox: cgroup v2, or the memory and pids
//! hierarchies of v1. One group per sandbox, `adamant/<helper pid>-<random>`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::error::{Failure, Stage};
use crate::spec::{Limit, Limits};

/// Where every distribution mounts the hierarchies.
pub(crate) const BASE: &str = "/sys/fs/cgroup";

/// Name of our group in each hierarchy.
const OURS: &str = "adamant";

/// Most leftovers looked at in one run.
const SWEEP_LIMIT: usize = 256;

/// How long a group may stay busy after its last process is gone.
const REMOVE_WAIT: Duration = Duration::from_millis(200);

/// The group of one sandbox. [`Cgroup::remove`] takes it away.
#[derive(Debug)]
pub(crate) struct Cgroup {
    memory: Option<PathBuf>,
    processes: Option<PathBuf>,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Cgroup {
    /// Makes a group that holds the limits asked for, or says why this host has none. Never part of
    /// a group: when one limit cannot be set, what was made is removed again.
    pub(crate) fn make(base: &Path, limits: &Limits, privileged: bool) -> io::Result<Self> {
        let name = group_name()?;
        if base.join("cgroup.controllers").exists() {
            let mut parents = Vec::new();
            if privileged {
                parents.push(base.to_path_buf());
            }
            parents.extend(delegated(base));
            let mut reason = io::Error::new(io::ErrorKind::Unsupported, "no cgroup is delegated to this user");
            for parent in parents {
                match unified(&parent, &name, limits) {
                    Ok(group) => return Ok(group),
                    Err(error) => reason = named(&error, &parent),
                }
            }
            return Err(reason);
        }
        if !privileged {
            let text = "cgroup v1 limits can be set by root alone";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        separate(base, &name, limits)
    }

    /// Moves a process, and what it starts from then on, into the group.
    pub(crate) fn add(&self, pid: Pid) -> Result<(), Failure> {
        for dir in self.dirs() {
            let file = dir.join("cgroup.procs");
            write(&file, &pid.as_raw_nonzero().to_string())
                .map_err(|error| Failure::io(Stage::Cgroup, file.display().to_string(), &error))?;
        }
        Ok(())
    }

    /// The limit that was struck since the group was made.
    pub(crate) fn struck(&self) -> Option<Limit> {
        let memory = self.memory.as_ref().map(|dir| match self.version {
            Version::One => dir.join("memory.oom_control"),
            Version::Two => dir.join("memory.events"),
        });
        if memory.is_some_and(|file| counter(&file, "oom_kill") > 0) {
            return Some(Limit::Memory);
        }
        let processes = self.processes.as_ref().map(|dir| dir.join("pids.events"));
        processes.filter(|file| counter(file, "max") > 0).map(|_| Limit::Processes)
    }

    /// Removes the group, whose processes are gone or going. What stays busy is left to the sweep
    /// of a later run.
    pub(crate) fn remove(&self) {
        for dir in self.dirs() {
            let _ = write(&dir.join("cgroup.kill"), "1");
            let deadline = Instant::now() + REMOVE_WAIT;
            while let Err(error) = fs::remove_dir(dir) {
                if error.kind() == io::ErrorKind::NotFound || Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        let second = self.processes.as_ref().filter(|dir| Some(*dir) != self.memory.as_ref());
        self.memory.iter().chain(second)
    }
}

fn group_name() -> io::Result<String> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{}-{:016x}", std::process::id(), u64::from_le_bytes(random)))
}

/// cgroup v2: one hierarchy.
fn unified(parent: &Path, name: &str, limits: &Limits) -> io::Result<Cgroup> {
    enable(parent)?;
    let ours = parent.join(OURS);
    make_dir(&ours)?;
    enable(&ours)?;
    sweep(&ours);
    let dir = ours.join(name);
    fs::create_dir(&dir)?;
    let group = Cgroup {
        memory: limits.memory_bytes.map(|_| dir.clone()),
        processes: limits.processes.map(|_| dir.clone()),
        version: Version::Two,
    };
    let set = || -> io::Result<()> {
        if let Some(bytes) = limits.memory_bytes {
            write(&dir.join("memory.max"), &bytes.to_string())?;
            // A part that dies of this limit leaves a result nobody should use.
            write(&dir.join("memory.oom.group"), "1")?;
            // Absent where there is no swap.
            let _ = write(&dir.join("memory.swap.max"), "0");
        }
        if let Some(processes) = limits.processes {
            write(&dir.join("pids.max"), &with_first(processes))?;
        }
        Ok(())
    };
    set().inspect_err(|_| group.remove())?;
    Ok(group)
}

/// Lets the groups below a directory have the controllers.
fn enable(dir: &Path) -> io::Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file)?;
    let has = |name| enabled.split_whitespace().any(|word| word == name);
    if has("memory") && has("pids") {
        return Ok(());
    }
    write(&file, "+memory +pids").map_err(|error| named(&error, &file))
}

/// The group around our own, which a service manager may have given to us.
fn delegated(base: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let parent = Path::new(own).parent()?;
    (!own.is_empty()).then(|| base.join(parent))
}

/// cgroup v1: a hierarchy each.
fn separate(base: &Path, name: &str, limits: &Limits) -> io::Result<Cgroup> {
    let mut group = Cgroup { memory: None, processes: None, version: Version::One };
    let make = |controller: &str| -> io::Result<PathBuf> {
        let hierarchy = base.join(controller);
        if !hierarchy.join("cgroup.procs").exists() {
            let text = format!("no {controller} controller at {}", hierarchy.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let ours = hierarchy.join(OURS);
        make_dir(&ours).map_err(|error| named(&error, &ours))?;
        sweep(&ours);
        let dir = ours.join(name);
        fs::create_dir(&dir).map_err(|error| named(&error, &dir))?;
        Ok(dir)
    };
    let mut set = || -> io::Result<()> {
        if let Some(bytes) = limits.memory_bytes {
            let dir = group.memory.insert(make("memory")?);
            write(&dir.join("memory.limit_in_bytes"), &bytes.to_string())?;
            // Absent when the kernel does not account for swap.
            let _ = write(&dir.join("memory.memsw.limit_in_bytes"), &bytes.to_string());
        }
        if let Some(processes) = limits.processes {
            let dir = group.processes.insert(make("pids")?);
            write(&dir.join("pids.max"), &with_first(processes))?;
        }
        Ok(())
    };
    let result = set();
    if let Err(error) = result {
        group.remove();
        return Err(error);
    }
    Ok(group)
}

/// The first process inside is ours and does not count.
fn with_first(processes: u64) -> String {
    processes.saturating_add(1).to_string()
}

/// Removes groups whose helper was killed before it could; theirs died with it.
fn sweep(ours: &Path) {
    let Ok(entries) = fs::read_dir(ours) else { return };
    for entry in entries.flatten().take(SWEEP_LIMIT) {
        let name = entry.file_name();
        let helper = name.to_str().and_then(|name| name.split_once('-')).map(|(pid, _)| pid);
        if helper.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            let _ = write(&entry.path().join("cgroup.kill"), "1");
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Writes to a file that exists. `fs::write` would make one, and the kernel's refusal of that says
/// less than "not found".
fn write(file: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(file)?.write_all(text.as_bytes())
}

fn counter(file: &Path, name: &str) -> u64 {
    fs::read_to_string(file)
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()))
        .unwrap_or(0)
}

fn named(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Limits = Limits {
        memory_bytes: Some(1 << 20),
        processes: Some(7),
        cpu_seconds: None,
        wall_ms: None,
        file_bytes: None,
        open_files: None,
    };

    #[test]
    fn counters_are_whole_words() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("memory.events");
        fs::write(&file, "low 0\noom 3\noom_kill 2\noom_group_kill 9\n").expect("write");
        assert_eq!(counter(&file, "oom_kill"), 2);
        assert_eq!(counter(&file, "oom"), 3);
        assert_eq!(counter(&file, "max"), 0);
        assert_eq!(counter(&dir.path().join("absent"), "max"), 0);
    }

    #[test]
    fn a_host_without_controllers_is_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = Cgroup::make(dir.path(), &BOTH, true).expect_err("nothing is there");
        assert!(error.to_string().contains("no memory controller"), "{error}");
        let error = Cgroup::make(dir.path(), &BOTH, false).expect_err("not root");
        assert!(error.to_string().contains("root alone"), "{error}");
    }

    #[test]
    fn the_sweep_takes_only_groups_of_dead_helpers() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let alive = dir.path().join(format!("{}-00", std::process::id()));
        // Above the kernel's largest process id.
        let dead = dir.path().join("4194305-00");
        let foreign = dir.path().join("other");
        for path in [&alive, &dead, &foreign] {
            fs::create_dir(path).expect("directory");
        }
        sweep(dir.path());
        assert!(alive.exists() && foreign.exists() && !dead.exists());
    }
}
