//! Second names. All of it blocks.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use adamant_digest::{Digest, Sha512};

use super::temp::Temp;
use super::{Inner, no_follow, sync_dir};

/// `sha256:`, 64 hex digits, a newline.
const LENGTH: u64 = 72;

fn root(store: &Inner) -> PathBuf {
    store.dir.join("sha512")
}

fn path(store: &Inner, other: Sha512) -> PathBuf {
    let hex = other.hex();
    root(store).join(&hex[..2]).join(hex)
}

/// Writes the entry unless it is there and right.
pub(super) fn put(store: &Inner, other: Sha512, digest: Digest) -> io::Result<()> {
    let path = path(store, other);
    let shard = path.parent().map(Path::to_owned).unwrap_or_default();
    if get(store, other)? == Some(digest) {
        // It may have been written by a process that died before it synced.
        no_follow().open(&path)?.sync_all()?;
        return sync_dir(&shard);
    }
    let mut temp = Temp::new(&store.dir.join("tmp"))?;
    temp.file_mut().write_all(format!("{digest}\n").as_bytes())?;
    rustix::fs::fchmod(temp.file(), rustix::fs::Mode::from_raw_mode(0o444))?;
    temp.file().sync_all()?;
    store.make_dir(&shard)?;
    temp.rename(&path).map_err(|(_, error)| error)?;
    sync_dir(&shard)
}

/// The entry; `None` if there is none or it cannot be one: then the next push writes it again.
pub(super) fn get(store: &Inner, other: Sha512) -> io::Result<Option<Digest>> {
    let file = match no_follow().open(path(store, other)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    match file.take(LENGTH + 1).read_to_string(&mut text) {
        Ok(_) => Ok(text.strip_suffix('\n').and_then(|text| text.parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes an entry away, durably.
pub(super) fn remove(store: &Inner, other: Sha512) -> io::Result<()> {
    let path = path(store, other);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => path.parent().map_or(Ok(()), sync_dir),
    }
}

/// Names in order.
pub(super) fn list(store: &Inner, after: Option<Sha512>, limit: usize) -> io::Result<Vec<Sha512>> {
    let mut found = Vec::new();
    let first = after.map_or_else(String::new, |after| after.hex()[..2].to_owned());
    for shard in (0..=u8::MAX).map(|shard| format!("{shard:02x}")).filter(|shard| *shard >= first) {
        if found.len() >= limit {
            break;
        }
        let entries = match std::fs::read_dir(root(store).join(&shard)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let mut here = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let other = name.to_str().filter(|name| name.starts_with(&shard));
            let other = other.and_then(|name| Sha512::from_hex(name).ok());
            here.extend(other.filter(|other| Some(*other) > after));
        }
        here.sort_unstable();
        here.truncate(limit - found.len());
        found.append(&mut here);
    }
    Ok(found)
}
