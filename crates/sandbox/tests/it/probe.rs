//! What the program inside tries. Prints one line for each attempt: its name and what came of it.
#![expect(unsafe_code, reason = "the attempts are system calls with no safe binding")]
#![expect(clippy::print_stdout, reason = "the output is the result")]
#![expect(clippy::cast_possible_wrap, reason = "constants of the kernel")]

use std::ffi::c_long;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::process::ExitCode;
use std::time::Duration;

pub(crate) fn run(args: &[String]) -> ExitCode {
    match args[0].as_str() {
        "calls" => calls(),
        "descriptors" => descriptors(),
        "network" => network(&args[1], &args[2]),
        "forks" => forks(),
        "memory" => memory(args[1].parse().expect("size")),
        "address" => address(),
        "serve" => serve(args[1].parse().expect("port")),
        "stuck" => stuck(args[1].parse().expect("port")),
        "x32" => return foreign(true),
        "i386" => return foreign(false),
        other => panic!("unknown probe {other}"),
    }
    ExitCode::SUCCESS
}

/// Makes a system call with up to five arguments.
fn call(number: c_long, args: &[c_long]) -> c_long {
    let arg = |index: usize| args.get(index).copied().unwrap_or(0);
    // SAFETY: pointers passed here come from C string literals or are null, except where a case
    // below passes a buffer of its own that outlives the call.
    unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4)) }
}

fn tell(name: &str, result: c_long) {
    if result >= 0 {
        println!("{name} allowed");
    } else {
        let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let text = match error {
            libc::EPERM => "EPERM".to_owned(),
            libc::ENOSYS => "ENOSYS".to_owned(),
            libc::EAFNOSUPPORT => "EAFNOSUPPORT".to_owned(),
            libc::EACCES => "EACCES".to_owned(),
            libc::EROFS => "EROFS".to_owned(),
            other => format!("errno {other}"),
        };
        println!("{name} {text}");
    }
}

fn calls() {
    let path = |text: &'static std::ffi::CStr| text.as_ptr() as c_long;
    let cwd = c_long::from(libc::AT_FDCWD);
    let flag = |flag: libc::c_int| c_long::from(flag);
    std::fs::write("/work/file", "x").expect("file");
    let file = path(c"/work/file");
    tell("mount", call(libc::SYS_mount, &[path(c"none"), path(c"/tmp"), path(c"tmpfs"), 0, 0]));
    tell("umount2", call(libc::SYS_umount2, &[path(c"/proc"), 2]));
    tell("pivot_root", call(libc::SYS_pivot_root, &[path(c"/tmp"), path(c"/tmp")]));
    tell("chroot", call(libc::SYS_chroot, &[path(c"/tmp")]));
    tell("open_tree", call(libc::SYS_open_tree, &[cwd, path(c"/"), 1]));
    tell("fsopen", call(libc::SYS_fsopen, &[path(c"tmpfs"), 0]));
    tell("mount_setattr", call(libc::SYS_mount_setattr, &[cwd, path(c"/"), 0, 0, 32]));
    for (name, bits) in [
        ("user", libc::CLONE_NEWUSER),
        ("mnt", libc::CLONE_NEWNS),
        ("net", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("time", libc::CLONE_NEWTIME),
    ] {
        tell(&format!("unshare-{name}"), call(libc::SYS_unshare, &[flag(bits)]));
    }
    tell("unshare-files", call(libc::SYS_unshare, &[flag(libc::CLONE_FILES)]));
    let cloned = call(libc::SYS_clone, &[flag(libc::CLONE_NEWUSER | libc::SIGCHLD)]);
    if cloned == 0 {
        std::process::exit(0);
    }
    tell("clone-user", cloned);
    tell("clone3", call(libc::SYS_clone3, &[0, 0]));
    tell("setns", call(libc::SYS_setns, &[0, 0]));
    tell("ptrace", call(libc::SYS_ptrace, &[flag(libc::PTRACE_TRACEME as i32)]));
    tell("process_vm_readv", call(libc::SYS_process_vm_readv, &[1, 0, 0, 0, 0]));
    tell("pidfd_getfd", call(libc::SYS_pidfd_getfd, &[0, 0, 0]));
    tell("keyctl", call(libc::SYS_keyctl, &[0, -1]));
    tell("add_key", call(libc::SYS_add_key, &[0, 0, 0, 0, 0]));
    tell("bpf", call(libc::SYS_bpf, &[0, 0, 0]));
    tell("perf_event_open", call(libc::SYS_perf_event_open, &[0, 0, 0, 0, 0]));
    tell("userfaultfd", call(libc::SYS_userfaultfd, &[1]));
    tell("kexec_load", call(libc::SYS_kexec_load, &[0, 0, 0, 0]));
    tell("init_module", call(libc::SYS_init_module, &[0, 0, 0]));
    tell("reboot", call(libc::SYS_reboot, &[0, 0, 0, 0]));
    tell("swapon", call(libc::SYS_swapon, &[0, 0]));
    tell("quotactl", call(libc::SYS_quotactl, &[0, 0, 0, 0]));
    tell("open_by_handle_at", call(libc::SYS_open_by_handle_at, &[cwd, 0, 0]));
    tell("io_uring_setup", call(libc::SYS_io_uring_setup, &[1, 0]));
    tell("openat2", call(libc::SYS_openat2, &[cwd, file, 0, 0]));
    tell("future", call(500, &[]));
    tell("personality-linux32", call(libc::SYS_personality, &[8]));
    tell("personality-ask", call(libc::SYS_personality, &[0xffff_ffff]));
    tell("fchmodat-suid", call(libc::SYS_fchmodat, &[cwd, file, 0o4755]));
    tell("fchmodat-sgid", call(libc::SYS_fchmodat, &[cwd, file, 0o2755]));
    tell("fchmodat-plain", call(libc::SYS_fchmodat, &[cwd, file, 0o755]));
    tell("fchmodat2-suid", call(452, &[cwd, file, 0o4755, 0]));
    let fresh = path(c"/work/fresh");
    let create = flag(libc::O_CREAT | libc::O_WRONLY);
    tell("create-suid", call(libc::SYS_openat, &[cwd, fresh, create, 0o4755]));
    tell("create-plain", call(libc::SYS_openat, &[cwd, fresh, create, 0o755]));
    let unnamed = flag(libc::O_TMPFILE | libc::O_WRONLY);
    tell("tmpfile-suid", call(libc::SYS_openat, &[cwd, path(c"/work"), unnamed, 0o4755]));
    // Without O_CREAT the mode is noise.
    tell("open-noise", call(libc::SYS_openat, &[cwd, file, 0, 0o4755]));
    let device = c_long::from(libc::S_IFCHR | 0o666);
    tell("mknod-char", call(libc::SYS_mknodat, &[cwd, path(c"/work/c"), device, 0x103]));
    let pipe = c_long::from(libc::S_IFIFO | 0o666);
    tell("mknod-fifo", call(libc::SYS_mknodat, &[cwd, path(c"/work/p"), pipe, 0]));
    #[cfg(target_arch = "x86_64")]
    {
        tell("chmod-suid", call(libc::SYS_chmod, &[file, 0o4755]));
        tell("open-suid", call(libc::SYS_open, &[path(c"/work/o"), create, 0o4755]));
        tell("creat-suid", call(libc::SYS_creat, &[path(c"/work/o"), 0o4755]));
    }
    let stream = flag(libc::SOCK_STREAM);
    let raw = flag(libc::SOCK_RAW);
    tell("socket-unix", call(libc::SYS_socket, &[flag(libc::AF_UNIX), stream, 0]));
    tell("socket-inet6", call(libc::SYS_socket, &[flag(libc::AF_INET6), stream, 0]));
    tell("socket-route", call(libc::SYS_socket, &[flag(libc::AF_NETLINK), raw, 0]));
    tell("socket-audit", call(libc::SYS_socket, &[flag(libc::AF_NETLINK), raw, 9]));
    tell("socket-packet", call(libc::SYS_socket, &[flag(libc::AF_PACKET), raw, 0]));
    tell("socket-alg", call(libc::SYS_socket, &[38, 5, 0]));
    tell("socket-vsock", call(libc::SYS_socket, &[40, stream, 0]));
    tell("socket-raw", call(libc::SYS_socket, &[flag(libc::AF_INET), raw, 1]));
    tell("setuid-root", call(libc::SYS_setuid, &[0]));
    tell("tiocsti", call(libc::SYS_ioctl, &[0, libc::TIOCSTI as c_long, 0]));
    tell("kill-first", call(libc::SYS_kill, &[1, 9]));
}

fn descriptors() {
    for fd in 0..4096 {
        // SAFETY: asks for flags; touches no memory and no state.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
            println!("{fd}");
        }
    }
}

fn network(tcp: &str, name: &str) {
    let address: SocketAddr = tcp.parse().expect("address");
    println!("tcp {}", outcome(&TcpStream::connect_timeout(&address, Duration::from_secs(2))));
    let away = "192.0.2.1:80".parse().expect("address");
    println!("away {}", outcome(&TcpStream::connect_timeout(&away, Duration::from_secs(2))));
    let unix = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("name");
    println!("unix {}", outcome(&std::os::unix::net::UnixStream::connect_addr(&unix)));
    let own = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let own = own.local_addr().expect("address");
    println!("own {}", outcome(&TcpStream::connect(own)));
}

fn outcome<T>(result: &std::io::Result<T>) -> &'static str {
    if result.is_ok() { "reached" } else { "unreachable" }
}

/// Starts processes until none can be started, and says how many could.
fn forks() {
    let mut count = 0;
    while count < 500 {
        // SAFETY: this process has one thread; the child only sleeps.
        match unsafe { libc::fork() } {
            0 => loop {
                std::thread::sleep(Duration::from_mins(1));
            },
            -1 => break,
            _ => count += 1,
        }
    }
    println!("{count}");
}

fn memory(bytes: usize) {
    let mut held = Vec::new();
    for _ in 0..bytes / (1 << 20) {
        held.push(vec![1_u8; 1 << 20]);
    }
    println!("{}", held.iter().map(Vec::len).sum::<usize>());
}

fn address() {
    let local = 0_u8;
    let heap = Box::new(0_u8);
    println!("{:p} {:p} {:p}", &raw const local, heap, address as *const ());
}

/// Answers each connection with what it sends, up to a line's end.
fn serve(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("bind");
    for stream in listener.incoming() {
        let mut stream = stream.expect("connection");
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|count| count == 1) && byte[0] != b'\n' {
            stream.write_all(&byte.map(|byte| byte.to_ascii_uppercase())).expect("answer");
        }
    }
}

/// Listens and never accepts.
fn stuck(port: u16) {
    use rustix::net::{AddressFamily, SocketType};
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("socket");
    let address = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
    rustix::net::bind(&socket, &address).expect("bind");
    rustix::net::listen(&socket, 0).expect("listen");
    loop {
        std::thread::sleep(Duration::from_mins(1));
    }
}

/// A call of another architecture of this processor; must not return.
fn foreign(x32: bool) -> ExitCode {
    #[cfg(target_arch = "x86_64")]
    if x32 {
        // getpid, which does no harm
        call(0x4000_0000 + libc::SYS_getpid, &[]);
    } else {
        let mut result = 20_i32;
        // SAFETY: call 20 of the 32-bit table is getpid; it clobbers nothing but its result.
        unsafe { std::arch::asm!("int 0x80", inout("eax") result) };
        println!("{result}");
    }
    let _ = x32;
    println!("survived");
    ExitCode::SUCCESS
}
