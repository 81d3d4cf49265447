//! Disks that fill up and disks that lose their power, below a registry under load.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::process::{installed, is_root, run, skipped};
use crate::pushes::{Client, Image, Random, Said, Trouble, assert_sound, rounds, serve};
use crate::world::fresh;

/// A file system of its own that is gone with its owner.
struct Mount(PathBuf);

impl Mount {
    fn of(at: &Path, arguments: &[&str]) -> Result<Self, String> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = run(Command::new("mount").args(arguments).arg(at));
        if mounted.code == 0 { Ok(Self(at.to_owned())) } else { Err(mounted.err.trim().to_owned()) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = run(Command::new("umount").arg(&self.0));
        if unmounted.code != 0 {
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.0));
        }
    }
}

#[test]
fn a_full_disk_refuses_pushes_and_loses_nothing() {
    let test = "a_full_disk_refuses_pushes_and_loses_nothing";
    if !is_root() {
        return skipped(test, "a file system of its own needs root");
    }
    let dir = fresh("registry-full");
    let mount = match Mount::of(&dir.join("disk"), &["-t", "tmpfs", "-o", "size=64m", "tmpfs"]) {
        Ok(mount) => mount,
        Err(reason) => return skipped(test, &reason),
    };
    let ballast = mount.0.join("ballast");
    std::fs::write(&ballast, vec![1; 24 << 20]).unwrap();
    let data = mount.0.join("data");
    let mut server = serve(&data);
    let (mut random, mut said) = (Random::new(), Said::default());
    let mut refused = 0;
    let mut unfinished = None;
    // Ever smaller pushes, until not even a manifest has room.
    for longest in [4 << 20, 1 << 20, 100_000, 4_000] {
        for _ in 0..200 {
            let image = Image::new("full/disk", &mut random, longest);
            let mut client = Client::new(&server.url);
            let outcome = client.push(&image);
            let text = match outcome {
                Ok(()) => None,
                Err(Trouble::Refused(status @ (503 | 507), text)) => Some(format!("{status} {text}")),
                Err(other) => panic!("{other:?}"),
            };
            let _ = client.cancel();
            said.add(std::mem::take(&mut client.said));
            if let Some(text) = text {
                assert!(text.contains("full") || text.contains("not available"), "{text}");
                refused += 1;
                unfinished = Some(image);
                break;
            }
        }
    }
    assert!(refused >= 2, "the disk never was full");
    // Whoever pulls notices nothing.
    said.assert_there(&server.url, "on a full disk");
    server.kill();
    std::fs::remove_file(&ballast).unwrap();
    server = serve(&data);
    said.assert_there(&server.url, "with room again");
    let mut client = Client::new(&server.url);
    client.push(&unfinished.unwrap()).unwrap();
    said.add(client.said);
    said.assert_there(&server.url, "at the end");
    assert_sound(&data, "at the end");
    server.kill();
    drop((server, mount));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_power_loss_takes_nothing_that_was_acknowledged() {
    let test = "a_power_loss_takes_nothing_that_was_acknowledged";
    if !is_root() || !installed("perl") {
        return skipped(test, "a file system of its own needs root, and to cut its power needs perl");
    }
    for (kind, size_mb) in [("ext4", 192_u64), ("xfs", 320)] {
        let make = format!("mkfs.{kind}");
        let found = ["/sbin", "/usr/sbin"].iter().any(|dir| Path::new(dir).join(&make).is_file());
        if !found && !installed(&make) {
            skipped(test, &format!("{make} is not installed"));
            continue;
        }
        let dir = fresh(&format!("registry-power-{kind}"));
        let image_file = dir.join("disk.img");
        std::fs::File::create(&image_file).unwrap().set_len(size_mb << 20).unwrap();
        run(Command::new(&make).arg("-q").arg(if kind == "ext4" { "-F" } else { "-f" }).arg(&image_file)).ok();
        let file = image_file.display().to_string();
        let at = dir.join("disk");
        let mut mount = match Mount::of(&at, &["-t", kind, "-o", "loop", &file]) {
            Ok(mount) => mount,
            Err(reason) => {
                skipped(test, &format!("{kind}: {reason}"));
                continue;
            }
        };
        let data = at.join("data");
        let (mut random, mut said) = (Random::new(), Said::default());
        let (mut server, count) = (serve(&data), rounds(5));
        for round in 0..count {
            let when = format!("{kind}, round {round}");
            // A machine without power answers nobody. This one goes on, and a sync that was under way may
            // say that it is done although nothing was written any more.
            let power = Arc::new(AtomicBool::new(false));
            let clients: Vec<_> = (0..3)
                .map(|number| {
                    let (url, mut random, power) = (server.url.clone(), random.fork(), power.clone());
                    std::thread::spawn(move || {
                        let mut client = Client::new(&url);
                        client.cut = power;
                        loop {
                            let image = Image::new(&format!("power/c{number}"), &mut random, 200_000);
                            if let Err(trouble) = client.push(&image) {
                                // From the cut on, the server can only say no.
                                match trouble {
                                    Trouble::Refused(status, text) => assert!(status >= 500, "{text}"),
                                    Trouble::Gone(_) => {}
                                }
                                return (client, image);
                            }
                        }
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(100 + random.below(900)));
            // FS_IOC_SHUTDOWN without a flush of the journal.
            let cut = "$flag = pack('L', 2); sysopen(F, $ARGV[0], 0) && ioctl(F, 0x8004587D, $flag) or die \"$!\\n\"";
            power.store(true, Ordering::SeqCst);
            let cut = run(Command::new("perl").args(["-e", cut]).arg(&at));
            assert_eq!(cut.code, 0, "{when}: {}", cut.err);
            let clients: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
            server.kill();
            drop(mount);
            mount = Mount::of(&at, &["-t", kind, "-o", "loop", &file]).unwrap();
            server = serve(&data);
            for (client, _) in &clients {
                said.add(client.said.clone());
            }
            said.assert_there(&server.url, &when);
            assert_sound(&data, &when);
            for (_, image) in clients {
                let mut again = Client::new(&server.url);
                again.push(&image).unwrap();
                said.add(again.said);
            }
        }
        eprintln!("{kind}: {count} power losses, {} blobs, {} tags", said.blobs.len(), said.tags.len());
        server.kill();
        drop((server, mount));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
