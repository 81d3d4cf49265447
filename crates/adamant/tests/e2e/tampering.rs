//! What somebody with access to the disk changes by hand is found and named.

use std::path::Path;

use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::world::World;

pub(crate) fn sql(data: &Path, text: &'static str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(data.join("adamant.db"));
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(text).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
}

#[test]
fn what_was_changed_by_hand_is_named() {
    let Some(mut world) = World::new("what_was_changed_by_hand_is_named") else { return };
    world.assert_sound("before");
    world.server.stop();
    world.server.down();
    let data = world.data.clone();
    let check = |what: &str, change: &dyn Fn(), back: &dyn Fn(), expect: &[&str]| {
        change();
        let found = world.fsck();
        back();
        let named = found.iter().any(|line| expect.iter().all(|part| line.contains(part)));
        assert!(named, "{what}: none of {found:#?} says {expect:?}");
        world.assert_sound(what);
    };
    let database = |what: &str, change: &'static str, back: &'static str, expect: &[&str]| {
        check(what, &|| sql(&data, change), &|| sql(&data, back), expect);
    };
    // A trigger could undo what an append has just made true.
    database(
        "a trigger",
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM bindings; END",
        "DROP TRIGGER t",
        &["schema", "trigger t", "none of ours"],
    );
    database("a table", "CREATE TABLE more (x)", "DROP TABLE more", &["schema", "table more"]);
    database("an index", "CREATE INDEX i ON bindings (digest)", "DROP INDEX i", &["schema", "index i"]);
    database(
        "the number of the views",
        "UPDATE meta SET views_schema = 0",
        "UPDATE meta SET views_schema = 1",
        &["meta", "earlier version"],
    );
    let file = |what: &str, path: &str, change: &dyn Fn(&Path), expect: &[&str]| {
        let path = data.join(path);
        let right = std::fs::read(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions();
        let back = || {
            std::fs::write(&path, &right).unwrap();
            std::fs::set_permissions(&path, mode.clone()).unwrap();
        };
        check(what, &|| change(&path), &back, expect);
    };
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    file("a missing key", "keys/builder", &remove, &["keys", "builder"]);
    let other = std::fs::read(data.join("keys/host")).unwrap();
    let swap = |path: &Path| std::fs::write(path, &other).unwrap();
    file("another key", "keys/builder", &swap, &["keys/builder", "not a key of this ledger"]);
    file("no checkpoint", "log/checkpoint", &remove, &["published log checkpoint", "missing"]);
    let cut = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, text.replacen('\n', "x\n", 1)).unwrap();
    };
    file("another checkpoint", "log/checkpoint", &cut, &["published log checkpoint"]);
    let tile = first_file(&data.join("log/tile/entries"));
    let tile = tile.strip_prefix(&data).unwrap().display().to_string();
    file("a missing tile", &tile, &remove, &["published log tile/entries", "missing"]);
    world.restart();
}

/// The file of the newest tile below a directory.
fn first_file(dir: &Path) -> std::path::PathBuf {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() { dirs.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.into_iter().max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap()
}
