//! The files of second names, as they lie on the disk.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use adamant_digest::Sha512;
use adamant_store::{BlobStore as _, FsBlobs};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use tokio::runtime::Runtime;

struct World {
    runtime: Runtime,
    store: FsBlobs,
    name: Sha512,
    file: PathBuf,
    _directory: TempDir,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let shared = Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(base).unwrap();
        let name = Sha512::of(b"");
        let file = directory.path().join("sha512").join(&name.hex()[..2]).join(name.hex());
        let store = FsBlobs::open(directory.path()).unwrap();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        World { runtime, store, name, file, _directory: directory }
    })
}

fuzz_target!(|bytes: &[u8]| {
    let world = world();
    std::fs::write(&world.file, bytes).unwrap();
    let found = world.runtime.block_on(world.store.aliased(world.name)).unwrap();
    // Nothing but the exact form leads anywhere.
    let text = found.map(|digest| format!("{digest}\n").into_bytes());
    assert!(text.is_none_or(|text| text == bytes));
});
