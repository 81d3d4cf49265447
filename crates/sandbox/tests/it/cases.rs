//! The tests. Each returns why it was skipped, or `None`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use adamant_sandbox::{Access, Exit, Fds, Limit, Limits, Mount, SandboxError, Source, Spec, Stage, owner};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal};

use crate::setup::{self, Root, marked, marker, until};

type Skipped = Option<String>;
type Case = (&'static str, fn() -> Skipped);

pub(crate) const ALL: &[Case] = &[
    ("host_capabilities", host_capabilities),
    ("exit_and_output", exit_and_output),
    ("identity_is_exact", identity_is_exact),
    ("user_zero_has_no_rights", user_zero_has_no_rights),
    ("only_three_descriptors", only_three_descriptors),
    ("host_is_out_of_sight", host_is_out_of_sight),
    ("root_and_proc_are_read_only", root_and_proc_are_read_only),
    ("writable_bind_and_tmpfs", writable_bind_and_tmpfs),
    ("root_from_a_descriptor", root_from_a_descriptor),
    ("network_is_loopback_alone", network_is_loopback_alone),
    ("calls_are_refused", calls_are_refused),
    ("foreign_calls_kill", foreign_calls_kill),
    ("address_layout", address_layout),
    ("processor_count", processor_count),
    ("nothing_survives_the_program", nothing_survives_the_program),
    ("nothing_survives_a_killed_helper", nothing_survives_a_killed_helper),
    ("nothing_survives_a_killed_caller", nothing_survives_a_killed_caller),
    ("kill_and_drop", kill_and_drop),
    ("wall_limit", wall_limit),
    ("processor_and_file_limits", processor_and_file_limits),
    ("process_limit", process_limit),
    ("memory_limit", memory_limit),
    ("groups_are_tidied", groups_are_tidied),
    ("faults_are_named", faults_are_named),
    ("sockets_are_given", sockets_are_given),
    ("a_stuck_program_blocks_nobody", a_stuck_program_blocks_nobody),
    ("many_at_once", many_at_once),
];

fn host_capabilities() -> Skipped {
    let host = Root::new().sandbox.capabilities().expect("probe");
    assert_eq!(host.user_namespaces, Ok(()));
    assert_eq!(host.root, rustix::process::geteuid().is_root());
    assert_eq!(host.limits_reason.is_none(), host.memory_limit && host.pids_limit, "{host:?}");
    None
}

fn exit_and_output() -> Skipped {
    let root = Root::new();
    let (outcome, out, err) = root.run(&root.shell("echo out; echo err >&2; exit 3")).expect("run");
    assert_eq!((outcome.exit, outcome.limit), (Exit::Code(3), None));
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert!(!outcome.success() && outcome.max_rss_bytes > 100_000, "{outcome:?}");
    let (outcome, ..) = root.run(&root.shell("kill -TERM $$")).expect("run");
    assert_eq!(outcome.exit, Exit::Signal(15));
    // SIGPIPE has its default action, which the helper's language runtime had taken away.
    let (outcome, ..) = root.run(&root.shell("kill -PIPE $$")).expect("run");
    assert_eq!(outcome.exit, Exit::Signal(13));
    // No input, and no output where none was given.
    let child = root.start(&root.shell("echo lost; read line; test $? = 1"));
    assert_eq!(child.wait().expect("run").exit, Exit::Code(0));
    assert!(matches!(child.wait(), Err(SandboxError::Lost { .. })));
    None
}

fn identity_is_exact() -> Skipped {
    let root = Root::new();
    let mut spec = root.shell(
        "id -u; id -g; umask; pwd; env; cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname; \
         ulimit -c; ulimit -n; ulimit -s; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; echo $$",
    );
    spec.env.push(("A".into(), "b c=d".into()));
    let out = root.output(&spec);
    let zero = "0000000000000000";
    let expected = format!(
        "1234\n5678\n0022\n/work\nPATH=/usr/bin:/bin\nPWD=/work\nA=b c=d\nquiet\n(none)\n0\n4096\n8192\n\
         CapInh:\t{zero}\nCapPrm:\t{zero}\nCapEff:\t{zero}\nCapBnd:\t{zero}\nCapAmb:\t{zero}\n\
         NoNewPrivs:\t1\nSeccomp:\t2\n2\n"
    );
    // The shell adds PWD, wherever it likes.
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&out), sorted(&expected));
    if rustix::process::geteuid().is_root() {
        let groups = root.output(&root.shell("grep ^Groups: /proc/self/status"));
        assert_eq!(groups.trim(), "Groups:");
    }
    None
}

fn user_zero_has_no_rights() -> Skipped {
    let root = Root::new();
    let script = "id -u; grep CapEff /proc/self/status; touch /x 2>/dev/null; echo $?; \
                  touch /dev/x 2>/dev/null; echo $?; chown 5 /work 2>/dev/null; echo $?";
    let mut spec = root.shell(script);
    (spec.uid, spec.gid) = (0, 0);
    assert_eq!(root.output(&spec), "0\nCapEff:\t0000000000000000\n1\n1\n1\n");
    None
}

fn only_three_descriptors() -> Skipped {
    let root = Root::new();
    // Inheritable descriptors of a careless caller.
    let stray = rustix::io::dup(fs::File::open("/").expect("directory")).expect("descriptor");
    let out = root.output(&root.spec(&["/probe", "probe", "descriptors"]));
    drop(stray);
    assert_eq!(out, "0\n1\n2\n");
    assert_eq!(root.output(&root.shell("readlink /proc/self/fd/0")), "/dev/null\n");
    None
}

fn host_is_out_of_sight() -> Skipped {
    let root = Root::new();
    let secret = setup::directory();
    fs::write(secret.path().join("secret"), "x").expect("file");
    let path = secret.path().display();
    let script = format!(
        "cat {path}/secret /etc/passwd /proc/1/environ /proc/1/root/etc/passwd 2>/dev/null; \
         ls /; ls /dev; ls /sys; ls -A /tmp; ls -d /proc/[0-9]*; ls /proc/kcore /proc/keys -1; wc -c < /proc/keys"
    );
    let out = root.output(&root.shell(&script));
    let mut tree = vec!["bin", "dev", "etc", "lib", "lib64", "probe", "proc", "sys", "tmp", "usr", "work"];
    tree.extend(["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..tree.len()], tree, "{out}");
    // The shell and `ls`, not the first process.
    let pids: Vec<&str> = lines[tree.len()..]
        .iter()
        .copied()
        .filter(|l| l.starts_with("/proc/") && l.chars().nth(6).is_some_and(|c| c.is_ascii_digit()))
        .collect();
    assert!(!pids.contains(&"/proc/1") && pids.contains(&"/proc/2"), "{out}");
    assert_eq!(lines.last(), Some(&"0"), "{out}");
    None
}

fn root_and_proc_are_read_only() -> Skipped {
    let root = Root::new();
    fs::set_permissions(root.tree(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    let script = "for f in /new /usr/new /dev/new /proc/sys/kernel/hostname /proc/sys/vm/drop_caches \
                  /proc/sysrq-trigger /proc/self/oom_score_adj /probe; do \
                  (echo 1 > $f) 2>/dev/null && test ! $f = /proc/sysrq-trigger && echo wrote $f; done; \
                  echo x > /dev/null && echo y > /dev/shm/y && echo z > /tmp/z && cat /dev/shm/y /tmp/z; \
                  head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; grep ' / ' /proc/self/mounts | cut -d' ' -f2,4 | cut -d, -f1-3";
    let out = root.output(&root.shell(script));
    assert_eq!(out, "y\nz\n3\n3\n/ ro,nosuid,nodev\n");
    assert!(!root.tree().join("new").exists());
    None
}

fn writable_bind_and_tmpfs() -> Skipped {
    let root = Root::new();
    let mut spec = root.shell("echo kept > file; stat -c '%u %g' file /etc; (head -c 2M /dev/zero > /etc/big) 2>/dev/null; stat -c %s /etc/big; stat -c '%a' /etc");
    spec.mounts.push(Mount::Tmpfs { target: "/etc".into(), size_bytes: 1 << 20, mode: 0o750 });
    let out = root.output(&spec);
    assert_eq!(out, "1234 5678\n1234 5678\n1048576\n750\n");
    let file = fs::metadata(root.work().join("file")).expect("kept");
    assert_eq!((file.uid(), file.gid()), owner());
    // The host sees nothing of the mounts.
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&root.tree().display().to_string()));
    None
}

fn root_from_a_descriptor() -> Skipped {
    let root = Root::new();
    fs::write(root.tree().join("which"), "opened").expect("file");
    let opened: OwnedFd = fs::File::open(root.tree()).expect("directory").into();
    let aside = root.tree().with_extension("aside");
    fs::rename(root.tree(), &aside).expect("rename");
    fs::create_dir(root.tree()).expect("directory");
    fs::write(root.tree().join("which"), "swapped").expect("file");
    let (mut out, end) = setup::pipe();
    let spec = root.shell("cat /which");
    let fds = Fds { root: Some(opened), stdout: Some(end), ..Fds::default() };
    let child = root.sandbox.spawn(&spec, fds).expect("spawn");
    assert_eq!(child.wait().expect("run").exit, Exit::Code(0));
    let mut text = String::new();
    out.read_to_string(&mut text).expect("output");
    assert_eq!(text, "opened");
    None
}

fn network_is_loopback_alone() -> Skipped {
    let root = Root::new();
    let tcp = TcpListener::bind("127.0.0.1:0").expect("listener");
    let address = tcp.local_addr().expect("address").to_string();
    let name = marker();
    let unix = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("name");
    let unix_listener = UnixListener::bind_addr(&unix).expect("listener");
    // Both are there for others.
    TcpStream::connect(&address).expect("host");
    UnixStream::connect_addr(&unix).expect("host");
    let out = root.output(&root.spec(&["/probe", "probe", "network", &address, &name]));
    assert_eq!(out, "tcp unreachable\naway unreachable\nunix unreachable\nown reached\n");
    drop((tcp, unix_listener));
    None
}

fn calls_are_refused() -> Skipped {
    let root = Root::new();
    let out = root.output(&root.spec(&["/probe", "probe", "calls"]));
    let results: BTreeMap<&str, &str> = out.lines().filter_map(|line| line.split_once(' ')).collect();
    let expected = |name: &str| match name {
        "unshare-files" | "personality-ask" | "fchmodat-plain" | "create-plain" | "open-noise" | "mknod-fifo"
        // The kernel takes the last one's signal, and the first process does not feel it.
        | "socket-unix" | "socket-inet6" | "socket-route" | "kill-first" => "allowed",
        "clone3" | "io_uring_setup" | "openat2" | "future" => "ENOSYS",
        "socket-audit" | "socket-packet" | "socket-alg" | "socket-vsock" => "EAFNOSUPPORT",
        // No such user in here.
        "setuid-root" => "errno 22",
        _ => "EPERM",
    };
    let wrong: Vec<_> = results.iter().filter(|(name, result)| **result != expected(name)).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(results.len() >= 55, "{}", results.len());
    None
}

fn foreign_calls_kill() -> Skipped {
    if !cfg!(target_arch = "x86_64") {
        return Some("this processor's kernel has one call table".into());
    }
    let root = Root::new();
    for table in ["x32", "i386"] {
        let (outcome, out, _) = root.run(&root.spec(&["/probe", "probe", table])).expect("run");
        let sent = Exit::Signal(Signal::SYS.as_raw());
        // A kernel built without the 32-bit table faults instead.
        let fault = Exit::Signal(Signal::SEGV.as_raw());
        assert!(outcome.exit == sent || (table == "i386" && outcome.exit == fault), "{table}: {outcome:?}");
        assert_eq!(out, "");
    }
    None
}

fn address_layout() -> Skipped {
    let root = Root::new();
    let mut spec = root.spec(&["/probe", "probe", "address"]);
    assert_eq!(root.output(&spec), root.output(&spec));
    spec.aslr = true;
    assert_ne!(root.output(&spec), root.output(&spec));
    None
}

fn processor_count() -> Skipped {
    let root = Root::new();
    let mut spec = root.shell("nproc");
    spec.cpus = Some(1);
    assert_eq!(root.output(&spec), "1\n");
    spec.cpus = Some(100_000);
    let all = std::thread::available_parallelism().expect("processors").to_string();
    assert_eq!(root.output(&spec).trim(), all);
    None
}

fn nothing_survives_the_program() -> Skipped {
    let root = Root::new();
    let mark = marker();
    let script = format!(
        "for i in 1 2 3; do setsid sleep {mark} & done; (setsid sh -c 'trap \"\" TERM HUP; sleep {mark} & sleep {mark}' &) ; sleep 0.1; exit 4"
    );
    let (outcome, ..) = root.run(&root.shell(&script)).expect("run");
    assert_eq!(outcome.exit, Exit::Code(4));
    assert_eq!(marked(&mark), [0; 0]);
    None
}

fn nothing_survives_a_killed_helper() -> Skipped {
    let root = Root::new();
    let mark = marker();
    let child = root.start(&root.shell(&format!("setsid sleep {mark} & sleep {mark}")));
    until("the programs start", || marked(&mark).len() >= 3);
    let pid = Pid::from_raw(i32::try_from(child.pid()).expect("pid")).expect("pid");
    rustix::process::kill_process(pid, Signal::KILL).expect("kill");
    assert!(matches!(child.wait(), Err(SandboxError::Lost { .. })));
    until("the programs go", || marked(&mark).is_empty());
    None
}

/// The caller that `nothing_survives_a_killed_caller` kills.
pub(crate) fn caller(tree: &Path, mark: &str) -> ExitCode {
    let root = Root::new();
    let mut spec = root.shell(&format!("setsid sleep {mark} & sleep {mark}"));
    spec.root = tree.to_path_buf();
    spec.limits.wall_ms = None;
    let child = root.start(&spec);
    let _ = child.wait();
    ExitCode::SUCCESS
}

fn nothing_survives_a_killed_caller() -> Skipped {
    let root = Root::new();
    let mark = marker();
    let mut caller = Command::new(setup::exe())
        .arg("caller")
        .arg(root.tree())
        .arg(&mark)
        .stdin(Stdio::null())
        .spawn()
        .expect("caller");
    let own = i32::try_from(caller.id()).expect("pid");
    let others = || marked(&mark).into_iter().filter(|pid| *pid != own).count();
    until("the programs start", || others() >= 3);
    caller.kill().expect("kill");
    caller.wait().expect("caller");
    until("the programs go", || others() == 0);
    None
}

fn kill_and_drop() -> Skipped {
    let root = Root::new();
    let mark = marker();
    let spec = root.shell(&format!("trap '' TERM INT; sleep {mark} & sleep {mark}"));
    let child = root.start(&spec);
    until("the programs start", || marked(&mark).len() >= 3);
    let outcome = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| child.wait());
        child.kill();
        waiting.join().expect("thread")
    });
    let outcome = outcome.expect("outcome");
    assert_eq!((outcome.exit, outcome.limit), (Exit::Signal(9), None));
    assert_eq!(marked(&mark), [0; 0]);
    child.kill();
    drop(root.start(&spec));
    let child = root.start(&spec);
    until("the programs start", || marked(&mark).len() >= 3);
    drop(child);
    assert_eq!(marked(&mark), [0; 0]);
    None
}

fn wall_limit() -> Skipped {
    let root = Root::new();
    let mark = marker();
    let mut spec = root.shell(&format!("trap '' TERM; setsid sleep {mark} & sleep {mark}"));
    spec.limits.wall_ms = Some(300);
    let started = Instant::now();
    let (outcome, ..) = root.run(&spec).expect("run");
    assert_eq!((outcome.exit, outcome.limit), (Exit::Signal(9), Some(Limit::Wall)));
    assert!(outcome.wall_ms >= 300 && started.elapsed() < Duration::from_secs(5), "{outcome:?}");
    assert_eq!(marked(&mark), [0; 0]);
    None
}

fn processor_and_file_limits() -> Skipped {
    let root = Root::new();
    let mut spec = root.shell("while :; do :; done");
    spec.limits.cpu_seconds = Some(1);
    assert_eq!(root.run(&spec).expect("run").0.limit, Some(Limit::Cpu));
    let mut spec = root.shell("sh -c 'while :; do :; done'; exit $?");
    spec.limits.cpu_seconds = Some(1);
    assert_eq!(root.run(&spec).expect("run").0.limit, Some(Limit::Cpu));
    let mut spec = root.shell("exec head -c 3M /dev/zero > big");
    spec.limits.file_bytes = Some(1 << 20);
    assert_eq!(root.run(&spec).expect("run").0.limit, Some(Limit::FileSize));
    assert_eq!(fs::metadata(root.work().join("big")).expect("file").len(), 1 << 20);
    None
}

fn process_limit() -> Skipped {
    let root = Root::new();
    if !root.sandbox.capabilities().expect("probe").pids_limit {
        return Some("no limit of processes on this host".into());
    }
    let mut spec = root.spec(&["/probe", "probe", "forks"]);
    spec.limits.processes = Some(20);
    let (outcome, out, _) = root.run(&spec).expect("run");
    assert_eq!(out, "19\n");
    // Two sandboxes of one user do not share the limit.
    let other = root.start(&spec);
    let (_, again, _) = root.run(&spec).expect("run");
    assert_eq!(again, "19\n");
    drop(other);
    if rustix::process::geteuid().is_root() {
        assert_eq!(outcome.limit, Some(Limit::Processes));
    }
    let mut bomb = root.shell("f() { f | f & }; f; sleep 1; exit 0");
    bomb.limits = Limits { processes: Some(30), wall_ms: Some(5000), ..Limits::default() };
    let started = Instant::now();
    root.run(&bomb).expect("run");
    assert!(started.elapsed() < Duration::from_secs(8));
    None
}

fn memory_limit() -> Skipped {
    let root = Root::new();
    let host = root.sandbox.capabilities().expect("probe");
    if !host.memory_limit {
        return host.limits_reason;
    }
    let bomb = |bytes: u64| {
        let mut spec = root.spec(&["/probe", "probe", "memory", &bytes.to_string()]);
        spec.limits.memory_bytes = Some(64 << 20);
        root.run(&spec).expect("run")
    };
    let (outcome, out, _) = bomb(16 << 20);
    assert_eq!((outcome.exit, outcome.limit, out.trim()), (Exit::Code(0), None, "16777216"));
    assert!(outcome.max_rss_bytes >= 16 << 20, "{outcome:?}");
    let (outcome, ..) = bomb(512 << 20);
    assert_eq!((outcome.exit, outcome.limit), (Exit::Signal(9), Some(Limit::Memory)));
    // Files in memory count.
    let mut spec = root.shell("head -c 200M /dev/zero > /tmp/big; echo $?");
    spec.limits.memory_bytes = Some(32 << 20);
    let (outcome, ..) = root.run(&spec).expect("run");
    assert!(outcome.limit == Some(Limit::Memory) || outcome.exit == Exit::Code(0), "{outcome:?}");
    None
}

/// Groups below `adamant` in any hierarchy, for a helper.
fn groups(helper: u32) -> Vec<String> {
    let prefix = format!("{helper}-");
    ["", "memory/", "pids/"]
        .iter()
        .filter_map(|hierarchy| fs::read_dir(format!("/sys/fs/cgroup/{hierarchy}adamant")).ok())
        .flat_map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()))
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn groups_are_tidied() -> Skipped {
    let root = Root::new();
    let host = root.sandbox.capabilities().expect("probe");
    if !host.memory_limit {
        return host.limits_reason;
    }
    let limits = Limits { memory_bytes: Some(256 << 20), processes: Some(50), ..Limits::default() };
    let spec = Spec { limits, ..root.shell("sleep 60") };
    let child = root.start(&spec);
    let helper = child.pid();
    until("the group is made", || !groups(helper).is_empty());
    child.kill();
    child.wait().expect("outcome");
    assert_eq!(groups(helper), [""; 0]);
    // A helper that cannot tidy up: the next one does.
    let child = root.start(&spec);
    let helper = child.pid();
    until("the groups are made", || groups(helper).len() >= 2);
    rustix::process::kill_process(Pid::from_raw(i32::try_from(helper).expect("pid")).expect("pid"), Signal::KILL)
        .expect("kill");
    let _ = child.wait();
    assert!(!groups(helper).is_empty());
    until("a later run tidies", || {
        root.output(&Spec { limits: spec.limits.clone(), ..root.shell("true") });
        groups(helper).is_empty()
    });
    None
}

fn faults_are_named() -> Skipped {
    let root = Root::new();
    let fault = |spec: &Spec| root.run(spec).expect_err("fault");
    let error = fault(&root.spec(&["/no/such", "x"]));
    assert!(
        matches!(&error, SandboxError::Exec { path, source } if path == "/no/such" && source.kind() == std::io::ErrorKind::NotFound),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "cannot execute /no/such in the sandbox");

    let bind = |source: &str, target: &str| {
        let mut spec = root.shell("echo ran");
        let source = Source::Path(source.into());
        spec.mounts.push(Mount::Bind { source, target: target.into(), access: Access::ReadOnly });
        spec
    };
    let stage = |error: &SandboxError| match error {
        SandboxError::Setup(failure) => Some(failure.stage),
        _ => None,
    };
    let error = fault(&bind("/usr", "/nowhere"));
    assert_eq!(stage(&error), Some(Stage::Mount));
    assert!(error.to_string().contains("mount /nowhere: No such file or directory"), "{error}");
    let error = fault(&bind("/no/source", "/etc"));
    assert!(error.to_string().contains("/no/source"), "{error}");
    // A hostile tree cannot move a mount.
    symlink("/usr", root.tree().join("link")).expect("link");
    symlink("/", root.tree().join("up")).expect("link");
    for target in ["/link", "/up/etc", "/../etc", "relative", "/"] {
        let error = fault(&bind("/usr", target));
        assert_eq!(stage(&error), Some(Stage::Mount), "{target}: {error}");
    }
    let mut spec = root.shell("true");
    spec.cwd = "/missing".into();
    let error = fault(&spec);
    assert_eq!(stage(&error), Some(Stage::Directory));
    assert!(error.to_string().contains("/missing"), "{error}");
    let mut spec = root.shell("true");
    spec.root = "/no/root".into();
    assert!(fault(&spec).to_string().contains("/no/root"));
    fs::remove_dir(root.tree().join("proc")).expect("remove");
    symlink("tmp", root.tree().join("proc")).expect("link");
    let error = fault(&root.shell("true"));
    assert!(error.to_string().contains("mount /proc"), "{error}");

    let mut spec = root.shell("true");
    spec.argv = vec!["sh".into()];
    assert!(matches!(fault(&spec), SandboxError::Spec(_)));
    let mut spec = root.shell("true");
    spec.env.push(("BIG".into(), "x".repeat(8 << 20)));
    assert!(matches!(fault(&spec), SandboxError::TooLarge { .. }));
    let nowhere = adamant_sandbox::Sandbox::new("/no/exe".into()).spawn(&root.shell("true"), Fds::default());
    assert!(matches!(nowhere, Err(SandboxError::Start { .. })));
    None
}

/// Asks the listener for a connection: the first byte, the rest as text, the socket.
fn ask(path: &Path) -> (u8, String, Option<TcpStream>) {
    let client = UnixStream::connect(path).expect("giver");
    let mut bytes = [0; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received =
        rustix::net::recvmsg(&client, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).expect("answer");
    assert!(received.bytes > 0, "the giver closed without an answer");
    let socket = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let text = String::from_utf8_lossy(&bytes[1..received.bytes]).into_owned();
    (bytes[0], text, socket.map(TcpStream::from))
}

fn sockets_are_given() -> Skipped {
    let root = Root::new();
    let dir = setup::directory();
    let path = dir.path().join("socket");
    let start = |argv: &[&str], port| {
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("listener");
        let mut spec = root.spec(argv);
        spec.port = Some(port);
        root.sandbox.spawn(&spec, Fds { listener: Some(listener.into()), ..Fds::default() }).expect("spawn")
    };
    for port in [8080, 80] {
        let child = start(&["/probe", "probe", "serve", &port.to_string()], port);
        until("the program listens", || ask(&path).0 == b'+');
        for _ in 0..50 {
            let (byte, _, socket) = ask(&path);
            assert_eq!(byte, b'+');
            let mut socket = socket.expect("socket");
            socket.set_nonblocking(false).expect("blocking");
            socket.write_all(b"hello\n").expect("send");
            let mut text = String::new();
            socket.read_to_string(&mut text).expect("receive");
            assert_eq!(text, "HELLO");
        }
        // One that leaves at once and one that stays silent stop nobody.
        drop(UnixStream::connect(&path).expect("giver"));
        let silent = UnixStream::connect(&path).expect("giver");
        assert_eq!(ask(&path).0, b'+');
        drop(silent);
        drop(child);
    }
    let child = start(&["/bin/sleep", "60"], 8080);
    let (byte, text, socket) = ask(&path);
    assert_eq!((byte, socket.is_none()), (b'-', true));
    assert!(text.contains("refused"), "{text}");
    drop(child);
    let mut spec = root.shell("true");
    spec.port = Some(1);
    assert!(matches!(root.sandbox.spawn(&spec, Fds::default()), Err(SandboxError::Spec(_))));
    None
}

fn a_stuck_program_blocks_nobody() -> Skipped {
    let root = Root::new();
    let dir = setup::directory();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("listener");
    let mut spec = root.spec(&["/probe", "probe", "stuck", "8080"]);
    spec.port = Some(8080);
    let child = root.sandbox.spawn(&spec, Fds { listener: Some(listener.into()), ..Fds::default() }).expect("spawn");
    until("the program listens", || ask(&path).0 == b'+');
    // The program's queue is full now; these wait, and then hear why not.
    let clients: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(&path).expect("giver")).collect();
    let mut answers = Vec::new();
    for mut client in clients {
        assert!(setup::readable(&client, Duration::from_secs(8)), "no answer");
        let mut bytes = [0; 64];
        let count = client.read(&mut bytes).expect("answer");
        answers.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
    }
    assert!(answers.iter().any(|answer| answer.starts_with('-') && answer.contains("timed out")), "{answers:?}");
    child.kill();
    assert_eq!(child.wait().expect("outcome").exit, Exit::Signal(9));
    None
}

fn many_at_once() -> Skipped {
    let root = Root::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let root = &root;
            scope.spawn(move || {
                for round in 0..5 {
                    let mut spec = root.shell(&format!("echo {thread}.{round}"));
                    spec.limits.processes = Some(10);
                    spec.limits.memory_bytes = Some(64 << 20);
                    assert_eq!(root.output(&spec), format!("{thread}.{round}\n"));
                }
            });
        }
    });
    None
}
