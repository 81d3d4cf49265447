use std::io::Write as _;
use std::path::Path;

use adamant_fetch::archive::{ArchiveError, Kind, Limits, extract, walk};
use adamant_fetch::deb::{self, DebError};
use tar::EntryType;

/// Path, type, mode, link or bytes.
type Line<'a> = (&'a str, EntryType, u32, &'a str);

/// A tar without any of the checks a writer makes.
fn tar(lines: &[Line<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, kind, mode, content) in lines {
        let mut header = tar::Header::new_gnu();
        let link = matches!(kind, EntryType::Symlink | EntryType::Link);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        if link {
            old.linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_size(if link { 0 } else { content.len() as u64 });
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        if !link {
            out.extend_from_slice(content.as_bytes());
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        out.extend_from_slice(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, "100644", bytes.len()).as_bytes(),
        );
        out.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

fn listing(root: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let shown = path.strip_prefix(root).unwrap().display().to_string();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(path);
                all.push(format!("{shown}/"));
            } else if kind.is_symlink() {
                all.push(format!("{shown} -> {}", std::fs::read_link(&path).unwrap().display()));
            } else {
                use std::os::unix::fs::PermissionsExt as _;
                let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
                all.push(format!("{shown} {mode:o} {}", std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    all.sort();
    all
}

const FILE: EntryType = EntryType::Regular;
const DIR: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

#[test]
fn unpacks_sources() {
    let lines: &[Line<'_>] = &[
        ("src-1.0/", DIR, 0o755, ""),
        ("src-1.0/a", FILE, 0o4711, "A"),
        ("./src-1.0/sub/b", FILE, 0o600, "B"),
        ("src-1.0/sub/up", LINK, 0o777, "../a"),
        ("src-1.0/again", HARD, 0o644, "src-1.0/a"),
        ("src-1.0/a", FILE, 0o644, "A2"),
    ];
    for packed in
        [tar(lines), gz(&tar(lines)), xz(&tar(lines)), [gz(&tar(lines)[..512]), gz(&tar(lines)[512..])].concat()]
    {
        let dir = tempfile::tempdir().unwrap();
        extract(packed.as_slice(), dir.path(), 1, &Limits::default()).unwrap();
        assert_eq!(listing(dir.path()), ["a 644 A2", "again 755 A", "sub/", "sub/b 644 B", "sub/up -> ../a"]);
    }
}

#[test]
fn long_names_of_both_kinds() {
    let long = format!("top/{}/file", "d".repeat(150));
    let mut gnu = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    gnu.append_data(&mut header, &long, b"x".as_slice()).unwrap();
    let mut pax = tar::Builder::new(Vec::new());
    pax.append_pax_extensions([("path", long.as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_path("short").unwrap();
    header.set_cksum();
    pax.append(&header, b"x".as_slice()).unwrap();
    for bytes in [gnu.into_inner().unwrap(), pax.into_inner().unwrap()] {
        let mut seen = Vec::new();
        walk(bytes.as_slice(), &Limits::default(), &mut |entry, _| {
            seen.push(entry.path.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, std::slice::from_ref(&long));
    }
}

#[test]
fn hostile_archives_are_refused_and_write_nothing_outside() {
    let check = |lines: &[Line<'_>], expect: &str| {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("in");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(outer.path().join("victim"), "untouched").unwrap();
        let result = extract(tar(lines).as_slice(), &dir, 0, &Limits::default());
        let found = result.map_or_else(|error| error.to_string(), |()| "unpacked".into());
        assert!(found.contains(expect), "{lines:?}: {found}");
        assert_eq!(std::fs::read_to_string(outer.path().join("victim")).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 2);
    };
    check(&[("../victim", FILE, 0o644, "x")], "not a path inside it");
    check(&[("/etc/x", FILE, 0o644, "x")], "not a path inside it");
    check(&[("a/../../victim", FILE, 0o644, "x")], "not a path inside it");
    check(&[("l", LINK, 0o777, "/etc/passwd")], "its link `l` points outside, at `/etc/passwd`");
    check(&[("l", LINK, 0o777, "..")], "points outside");
    check(&[("a/l", LINK, 0o777, "b/../../../victim")], "points outside");
    check(&[("a", LINK, 0o777, "b"), ("a/x", FILE, 0o644, "x")], "collide");
    check(&[("d", DIR, 0o755, ""), ("a", LINK, 0o777, "d"), ("a/x", FILE, 0o644, "x")], "collide");
    check(&[("d", DIR, 0o755, ""), ("d", FILE, 0o644, "x")], "collide");
    check(&[("f", FILE, 0o644, "x"), ("f/g", FILE, 0o644, "x")], "collide");
    check(&[("h", HARD, 0o644, "../victim")], "not a path inside it");
    check(&[("h", HARD, 0o644, "none")], "points outside");
    check(&[("l", LINK, 0o777, "d"), ("d/f", FILE, 0o644, "x"), ("h", HARD, 0o644, "l/f")], "points outside");
    check(&[("null", EntryType::Char, 0o666, "")], "`null` is a device");
    check(&[("p", EntryType::Fifo, 0o666, "")], "`p` is a pipe");
    check(&[("s", EntryType::GNUSparse, 0o666, "")], "a sparse file");
    check(&[("l", LINK, 0o777, "f"), ("l", FILE, 0o644, "x")], "unpacked");
}

#[test]
fn bounds() {
    let small = Limits { entries: 2, file_bytes: 10, total_bytes: 1 << 20, ratio: 100 };
    let run = |bytes: &[u8], limits: &Limits| walk(bytes, limits, &mut |_, _| Ok(())).unwrap_err();
    let three = tar(&[("a", FILE, 0o644, ""), ("b", FILE, 0o644, ""), ("c", FILE, 0o644, "")]);
    assert!(matches!(run(&three, &small), ArchiveError::TooLarge { what: "entries", limit: 2 }));
    let long = tar(&[("a", FILE, 0o644, "12345678901")]);
    assert!(matches!(run(&long, &small), ArchiveError::TooLarge { what: "bytes in one file", .. }));
    // 24 MiB of zeros in some kilobytes.
    let zeros = "\0".repeat(24 << 20);
    let bomb = gz(&tar(&[("a", FILE, 0o644, &zeros), ("b", FILE, 0o644, "")]));
    let error = run(&bomb, &Limits { ratio: 100, ..Limits::default() });
    assert!(error.to_string().contains("unpacks to more than is allowed"), "{error}");
    let endless_name = tar(&[("././@LongLink", EntryType::GNULongName, 0, &"n".repeat(5000)), ("a", FILE, 0, "")]);
    assert!(matches!(run(&endless_name, &Limits::default()), ArchiveError::TooLarge { what: "bytes in one path", .. }));
    for (bytes, expect) in [
        (b"PK\x03\x04".as_slice(), "a zip file"),
        (b"BZh9", "packed with bzip2"),
        (b"\x28\xb5\x2f\xfd", "packed with zstd"),
        (b"", "empty"),
    ] {
        assert!(run(bytes, &small).to_string().contains(expect));
    }
    assert!(walk([0_u8; 1024].as_slice(), &small, &mut |_, _| Ok(())).is_err());
    assert!(walk(&b"hello"[..], &small, &mut |_, _| Ok(())).is_err());
}

#[test]
fn packages() {
    let data = tar(&[
        ("./", DIR, 0o755, ""),
        ("./usr/bin/cc", LINK, 0o777, "/etc/alternatives/cc"),
        ("./usr/bin/x", FILE, 0o755, "x"),
    ]);
    let read = |bytes: &[u8]| {
        let mut seen = Vec::new();
        deb::read(bytes, &Limits::default(), &mut |entry, reader| {
            let mut text = String::new();
            reader.read_to_string(&mut text)?;
            seen.push((entry.path.clone(), entry.mode, entry.kind.clone(), text));
            Ok(())
        })
        .map(|()| seen)
    };
    let control = b"control".as_slice();
    for (name, data) in [
        ("data.tar", data.clone()),
        ("data.tar.gz", gz(&data)),
        ("data.tar.xz", xz(&data)),
        ("data.tar.xz/", xz(&data)),
    ] {
        let package = ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", control), (name, &data)]);
        let seen = read(&package).unwrap();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].2, Kind::Symlink { target: "/etc/alternatives/cc".into() });
        assert_eq!((seen[1].0.as_str(), seen[1].1, seen[1].3.as_str()), ("usr/bin/x", 0o755, "x"));
    }
    let zstd = ar(&[("debian-binary", b"2.0\n"), ("control.tar.zst", control), ("data.tar.zst", b"x")]);
    assert!(matches!(read(&zstd), Err(DebError::Packing(name)) if name == "data.tar.zst"));
    for bad in [
        b"".to_vec(),
        b"!<arch>\n".to_vec(),
        ar(&[("control.tar.xz", control)]),
        ar(&[("debian-binary", b"3.0\n"), ("data.tar", &data)]),
        ar(&[("debian-binary", b"2.0\n"), ("control.tar.xz", control)]),
    ] {
        assert!(matches!(read(&bad), Err(DebError::Format(_))), "{}", bad.len());
    }
    let whole = ar(&[("debian-binary", b"2.0\n"), ("data.tar.xz", &xz(&data))]);
    for end in 0..whole.len() - 40 {
        assert!(read(&whole[..end]).is_err(), "cut at {end}");
    }
}
