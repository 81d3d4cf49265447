//! Ids of uploads, and whatever lies in their directory when the server starts.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap())
}

// A repository, an id and what lies there, each ended by a byte that no text has.
fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0xff);
    let mut part = || parts.next().unwrap_or_default();
    let (repository, name, bytes) = (part(), part(), part());
    let (repository, name) = (&*String::from_utf8_lossy(repository), &*String::from_utf8_lossy(name));
    let shared = Path::new("/dev/shm");
    let base = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    let directory = tempfile::tempdir_in(base).unwrap();
    runtime().block_on(adamant_registry::fuzz::upload(directory.path(), repository, name, bytes));
});
