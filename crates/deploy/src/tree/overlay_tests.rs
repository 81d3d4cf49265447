use super::*;
use ::tar::{Builder, EntryType, Header};

/// One word a member: `d path`, `f path bytes`, `l path target`, `h path target`, `c path`, `p path`.
fn layer(members: &[(&str, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, value) in members {
        let mut header = Header::new_ustar();
        header.set_mode(if *kind == "d" { 0o755 } else { 0o4644 });
        header.set_size(0);
        header.set_entry_type(match *kind {
            "d" => EntryType::Directory,
            "l" => EntryType::Symlink,
            "h" => EntryType::Link,
            "c" => EntryType::Char,
            "p" => EntryType::Fifo,
            _ => EntryType::Regular,
        });
        // Written raw: the builder's own setters refuse what hostile archives hold.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        if matches!(*kind, "l" | "h") {
            header.as_mut_bytes()[157..157 + value.len()].copy_from_slice(value.as_bytes());
        }
        let data = if *kind == "f" { value.as_bytes() } else { b"" };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn check(layers: &[&[(&str, &str, &str)]], expect: Result<&str, &str>) {
    let mut overlay = Overlay::default();
    let found = layers
        .iter()
        .try_for_each(|members| overlay.add(&layer(members)[..], None))
        .and_then(|()| overlay.tree())
        .map(|tree| {
            let line = |(path, entry): (&str, &Entry)| match &entry.kind {
                EntryKind::Dir => format!("{path}/"),
                EntryKind::File { size, .. } => format!("{path}:{size}"),
                EntryKind::Symlink { target } => format!("{path}->{target}"),
            };
            tree.iter().map(line).collect::<Vec<_>>().join(" ")
        })
        .map_err(|e| e.to_string());
    assert_eq!(found.as_deref().map_err(String::as_str), expect, "{layers:?}");
}

#[test]
fn layers() {
    check(&[&[("d", "./", ""), ("f", "./a/b", "xy"), ("l", "c", "../..")]], Ok("a/ a/b:2 c->../.."));
    check(&[&[("f", "a", "1"), ("h", "b", "a")]], Ok("a:1 b:1"));
    check(&[&[("f", "a/b", "1")], &[("f", "a/.wh.b", "")]], Ok("a/"));
    check(&[&[("f", "a/b/c", "1")], &[("f", "a/.wh.b", ""), ("f", "a/b", "22")]], Ok("a/ a/b:2"));
    check(&[&[("f", "a/b/c", "1")], &[("f", "a/b/d", "1"), ("f", "a/.wh..wh..opq", "")]], Ok("a/ a/b/ a/b/d:1"));
    check(&[&[("f", "a/b", "1")], &[("f", "a", "1")]], Ok("a:1"));
    check(&[&[("l", "a", "b")], &[("d", "a", "")]], Ok("a/"));
    check(&[&[("f", "a", "1")], &[("f", "a-b/c", "1"), ("f", ".wh.a", "")]], Ok("a-b/ a-b/c:1"));
}

#[test]
fn hostile_layers() {
    check(&[&[("f", "../a", "")]], Err("`../a` leaves the tree"));
    check(&[&[("f", "a/../../b", "")]], Err("`a/../../b` leaves the tree"));
    check(&[&[("f", "/etc/passwd", "")]], Err("`/etc/passwd` is an absolute path"));
    check(&[&[("l", "a", "/etc"), ("f", "a/b", "")]], Err("`a/b` lies below `a`, a symbolic link to `/etc`"));
    check(&[&[("l", "a", "/etc")], &[("f", "a/b", "")]], Err("`a/b` lies below `a`, a symbolic link to `/etc`"));
    check(&[&[("f", "a", ""), ("f", "a/b", "")]], Err("`a/b` lies below the file `a`"));
    check(&[&[("h", "a", "/etc/passwd")]], Err("`/etc/passwd` is an absolute path"));
    check(&[&[("h", "a", "../x")]], Err("`../x` leaves the tree"));
    check(&[&[("h", "a", "b")]], Err("`a` is a link to `b`, which is not a file of the image"));
    check(&[&[("l", "b", "c"), ("h", "a", "b")]], Err("`a` is a link to `b`, which is not a file of the image"));
    check(&[&[("c", "dev/null", "")]], Err("`dev/null` is a device"));
    check(&[&[("p", "a", "")]], Err("`a` is a pipe"));
    check(&[&[("f", "a/.wh...", "")]], Err("`a/.wh...` is not a whiteout this version knows"));
}

#[test]
fn set_user_id_is_left_out() {
    let mut overlay = Overlay::default();
    overlay.add(&layer(&[("f", "a", "1")])[..], None).unwrap();
    assert_eq!(overlay.tree().unwrap().entry("a").unwrap().mode, 0o644);
}

#[test]
fn truncated_and_damaged_archives() {
    let bytes = layer(&[("f", "a", "0123456789")]);
    for length in [0, 100, 515, 600, 1023] {
        assert!(Overlay::default().add(&bytes[..length], None).is_err(), "{length}");
    }
    let mut damaged = bytes.clone();
    damaged[0] = b'b';
    assert!(Overlay::default().add(&damaged[..], None).unwrap_err().to_string().contains("wrong sum"));
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let error = Overlay::default().add(&header.as_bytes()[..], None).unwrap_err();
    assert!(error.to_string().contains("at most 65536 are allowed"), "{error}");
}

#[test]
fn what_is_laid_out_hashes_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let (objects, root) = (temp.path().join("objects"), temp.path().join("root"));
    fs::create_dir(&objects).unwrap();
    fs::create_dir(&root).unwrap();
    let members = layer(&[
        ("f", "bin/a", "program"),
        ("h", "bin/b", "bin/a"),
        ("l", "l", "bin/a"),
        ("d", "e", ""),
        ("f", "z", ""),
    ]);
    let mut overlay = Overlay::default();
    overlay.add(&members[..], Some(&objects)).unwrap();
    overlay.mount_point("proc", 0o755).unwrap();
    overlay.lay_out(&root, &objects, None).unwrap();
    let tree = overlay.tree().unwrap();
    let fd = crate::tree::open_dir(&root).unwrap();
    crate::tree::compare(&fd, &tree).unwrap();
    fs::write(root.join("bin/b"), "pr0gram").unwrap();
    assert!(crate::tree::compare(&fd, &tree).unwrap_err().to_string().contains("bin/b"));
}
