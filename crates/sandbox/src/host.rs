//! What this host allows, with reasons and fixes.

use std::fs;

use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

/// User and group id that sandboxed processes have on a host where Adamant runs as root.
/// Above the ids of people and services, below those that container engines hand out.
const UNPRIVILEGED: u32 = 886_000;

/// What the sandbox can do on this host. Made by [`crate::Sandbox::capabilities`], which tries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Whether processes run as an unprivileged user of their own instead of ours.
    pub root: bool,
    /// Whether a sandbox can be made at all; else the reason and its fix.
    pub user_namespaces: Result<(), String>,
    /// Whether [`crate::Limits::memory_bytes`] holds.
    pub memory_limit: bool,
    /// Whether [`crate::Limits::processes`] holds.
    pub pids_limit: bool,
    /// Why a limit does not hold, and what would change that.
    pub limits_reason: Option<String>,
}

/// User and group id of sandboxed processes as the host sees them. What they shall write to must
/// belong to these.
pub fn owner() -> (u32, u32) {
    if privileged() {
        (UNPRIVILEGED, UNPRIVILEGED)
    } else {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }
}

/// Whether this process may mount, and map and take on the unprivileged id. Root inside an
/// ordinary container may not, and goes the way of an ordinary user.
pub(crate) fn privileged() -> bool {
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE;
    rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
        && maps("/proc/self/uid_map")
        && maps("/proc/self/gid_map")
}

fn maps(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|map| map_covers(&map, UNPRIVILEGED))
}

fn map_covers(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) => (inside..inside + count).contains(&u64::from(id)),
            _ => false,
        }
    })
}

/// The switch of this host that most likely refused a namespace or a mount, and its fix.
pub(crate) fn hint(errno: Errno) -> Option<String> {
    let setting = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let text = if errno == Errno::NOSPC || setting("/proc/sys/user/max_user_namespaces") == Some(0) {
        "the limit of user namespaces is reached; raise it with `sysctl -w user.max_user_namespaces=15000`"
    } else if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        "unprivileged user namespaces are off; allow them with `sysctl -w kernel.unprivileged_userns_clone=1`, or run as root"
    } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "AppArmor restricts unprivileged user namespaces; allow them with `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, with a profile that grants `userns` to this program, or run as root"
    } else if matches!(errno, Errno::NOSYS | Errno::INVAL) {
        "this needs Linux 5.12 or later with user, pid, network, IPC and UTS namespaces"
    } else if matches!(errno, Errno::PERM | Errno::ACCESS) {
        "the host forbids it; inside a container, start that container with nested namespaces and an unmasked /proc allowed (for podman: `--security-opt unmask=ALL --security-opt seccomp=unconfined`)"
    } else {
        return None;
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_map_ranges() {
        assert!(map_covers("         0          0 4294967295\n", UNPRIVILEGED));
        assert!(!map_covers("0 1000 1\n1 100000 65536\n", UNPRIVILEGED));
        assert!(map_covers("0 1000 1\n886000 100000 1\n", UNPRIVILEGED));
        assert!(!map_covers("886001 100000 1\n", UNPRIVILEGED));
        assert!(!map_covers("0 1000\nx y z\n", UNPRIVILEGED));
    }
}
