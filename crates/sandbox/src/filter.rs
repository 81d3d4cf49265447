//! Which system calls a sandboxed program is refused.
//!
//! The list takes away ways into the kernel that a build or a service does not need, and ways to
//! leave behind what the rest of the sandbox cannot take back, such as a set-user-id file.

use std::collections::BTreeMap;
use std::ffi::c_long;

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use crate::error::{Failure, Stage};

/// First system call number that this list does not know (Linux 6.18 has 469). Those above answer
/// "no such call", as a kernel of that age would.
const UNKNOWN_FROM: u32 = 470;

/// Same number on both architectures; absent from libc on one.
const FCHMODAT2: c_long = 452;

#[cfg(target_arch = "x86_64")]
const TARGET: (TargetArch, u32) = (TargetArch::x86_64, 0xc000_003e);
#[cfg(target_arch = "aarch64")]
const TARGET: (TargetArch, u32) = (TargetArch::aarch64, 0xc000_00b7);

/// Installs the filters in this process and all it starts. They cannot be taken off.
pub(crate) fn install() -> Result<(), Failure> {
    let fault = |what: &str, error: &dyn std::fmt::Display| Failure::text(Stage::Filter, what, error.to_string());
    let compile = |name, rules, errno| compile(rules, errno).map_err(|error| fault(name, &error));
    let programs = [
        ("refusals", compile("refusals", refused(), Errno::PERM)?),
        ("sockets", compile("sockets", sockets(), Errno::AFNOSUPPORT)?),
        ("unknown calls", unknown()),
    ];
    for (name, program) in programs {
        seccompiler::apply_filter(&program).map_err(|error| fault(name, &error))?;
    }
    Ok(())
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: Errno) -> Result<BpfProgram, seccompiler::BackendError> {
    let errno = errno.raw_os_error().unsigned_abs();
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), TARGET.0)?.try_into()
}

/// A comparison of the low 32 bits of an argument, which is all these calls read of it.
fn arg(index: u8, operator: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value).expect("argument index is below 6")
}

fn bits(index: u8, mask: u64, value: u64) -> SeccompCondition {
    arg(index, SeccompCmpOp::MaskedEq(mask), value)
}

fn rule(conditions: Vec<SeccompCondition>) -> SeccompRule {
    SeccompRule::new(conditions).expect("no rule here is empty")
}

/// Calls answered with "operation not permitted".
fn refused() -> BTreeMap<i64, Vec<SeccompRule>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        always_refused().iter().map(|number| (*number, Vec::new())).collect();

    // Namespaces. Each flag of its own: any one is enough.
    let flags = |known: &[libc::c_int]| -> Vec<SeccompRule> {
        known.iter().map(|flag| u64::from(flag.unsigned_abs())).map(|flag| rule(vec![bits(0, flag, flag)])).collect()
    };
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    rules.insert(libc::SYS_clone, flags(&namespaces));
    // In `clone` this bit is part of the exit signal.
    let mut unshare = flags(&namespaces);
    unshare.extend(flags(&[libc::CLONE_NEWTIME]));
    rules.insert(libc::SYS_unshare, unshare);

    // Set-user-id and set-group-id bits, wherever a mode is given.
    let privileged = |index| [0o4000, 0o2000].map(|bit| rule(vec![bits(index, bit, bit)])).to_vec();
    rules.insert(libc::SYS_fchmod, privileged(1));
    rules.insert(libc::SYS_fchmodat, privileged(2));
    rules.insert(FCHMODAT2, privileged(2));
    // The mode counts only when a file may be made, else it is whatever was in the register.
    let creating = |flags, mode| -> Vec<SeccompRule> {
        let creates = [libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY];
        let creates = creates.map(|flag| u64::from(flag.unsigned_abs()));
        let each = |create| [0o4000, 0o2000].map(move |bit| (create, bit));
        creates
            .into_iter()
            .flat_map(each)
            .map(|(create, bit)| rule(vec![bits(flags, create, create), bits(mode, bit, bit)]))
            .collect()
    };
    rules.insert(libc::SYS_openat, creating(2, 3));
    // Devices; named pipes and sockets are fine.
    let node = |index| -> Vec<SeccompRule> {
        let kind = |kind| rule(vec![bits(index, u64::from(libc::S_IFMT), u64::from(kind))]);
        let mut rules = privileged(index);
        rules.extend([kind(libc::S_IFCHR), kind(libc::S_IFBLK)]);
        rules
    };
    rules.insert(libc::SYS_mknodat, node(2));
    #[cfg(target_arch = "x86_64")]
    {
        rules.insert(libc::SYS_chmod, privileged(1));
        rules.insert(libc::SYS_open, creating(1, 2));
        rules.insert(libc::SYS_creat, privileged(1));
        rules.insert(libc::SYS_mknod, node(1));
    }

    // Asking for the personality, the plain one, and the one without address randomization.
    let no_randomize = u64::from(libc::ADDR_NO_RANDOMIZE.unsigned_abs());
    let known = [0, no_randomize, 0xffff_ffff];
    let other = known.map(|value| arg(0, SeccompCmpOp::Ne, value)).to_vec();
    rules.insert(libc::SYS_personality, vec![rule(other)]);

    // Typing into a terminal that a standard descriptor may be.
    let requests = [0x5412, 0x541c]; // TIOCSTI, TIOCLINUX
    let terminal = requests.map(|request| rule(vec![arg(1, SeccompCmpOp::Eq, request)])).to_vec();
    rules.insert(libc::SYS_ioctl, terminal);
    rules
}

/// Calls refused whatever their arguments.
fn always_refused() -> Vec<c_long> {
    let mut calls = vec![
        // Mounts and roots
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        467, // open_tree_attr
        libc::SYS_setns,
        // Other processes
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        // Keys, which know no namespaces
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        // Kernel interfaces with a history
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_fanotify_init,
        libc::SYS_lookup_dcookie,
        libc::SYS_nfsservctl,
        // Files past their directories
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        // The machine
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_acct,
        libc::SYS_syslog,
        libc::SYS_vhangup,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        libc::SYS_kexec_file_load,
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_modify_ldt,
        libc::SYS_uselib,
        libc::SYS_ustat,
        libc::SYS_sysfs,
    ]);
    #[cfg(target_arch = "aarch64")]
    calls.push(294); // kexec_file_load
    calls
}

/// Families other than unix, internet and routing netlink: "address family not supported".
fn sockets() -> BTreeMap<i64, Vec<SeccompRule>> {
    let known = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let known = known.map(|family| u64::from(family.unsigned_abs()));
    let other = known.map(|family| arg(0, SeccompCmpOp::Ne, family)).to_vec();
    let route = u64::from(libc::NETLINK_ROUTE.unsigned_abs());
    let netlink =
        vec![arg(0, SeccompCmpOp::Eq, u64::from(libc::AF_NETLINK.unsigned_abs())), arg(2, SeccompCmpOp::Ne, route)];
    let rules = vec![rule(other), rule(netlink)];
    [(libc::SYS_socket, rules.clone()), (libc::SYS_socketpair, rules)].into()
}

/// Calls that look absent, so that programs take the older way, which the rules above can read:
/// these pass their arguments in memory, where a filter cannot look.
const ABSENT: [c_long; 7] = [
    libc::SYS_clone3,
    libc::SYS_openat2,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    457, // statmount
    458, // listmount
];

/// Calls of another architecture end the process; absent and unknown ones answer "no such call".
fn unknown() -> BpfProgram {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const NUMBER_OFFSET: u32 = 0;
    const ARCH_OFFSET: u32 = 4;
    /// The x32 calls of x86_64 carry this bit; no call of the other architecture does.
    const X32: u32 = 0x4000_0000;
    let enosys = libc::SECCOMP_RET_ERRNO | Errno::NOSYS.raw_os_error().unsigned_abs();
    let line = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let mut program = vec![
        line(LOAD, 0, 0, ARCH_OFFSET),
        line(EQUAL, 1, 0, TARGET.1),
        line(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        line(LOAD, 0, 0, NUMBER_OFFSET),
        line(AT_LEAST, 0, 1, X32),
        line(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        line(AT_LEAST, 0, 1, UNKNOWN_FROM),
        line(RETURN, 0, 0, enosys),
    ];
    for number in ABSENT.into_iter().filter_map(|number| u32::try_from(number).ok()) {
        program.push(line(EQUAL, 0, 1, number));
        program.push(line(RETURN, 0, 0, enosys));
    }
    program.push(line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}
