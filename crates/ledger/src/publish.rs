//! Tiles as C2SP `tlog-tiles` names them, for files and for HTTP. Names and content follow from
//! the entries, so publishing again writes the same; the checkpoint goes last, so nobody sees a
//! tree whose tiles are not there.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adamant_store::{Ledger as _, LedgerError};
use adamant_tlog::{Checkpoint, Note, TILE_WIDTH, Tile, TileKind, VerifierKey, encode_entries, new_tiles};

use crate::check::Finding;
use crate::db::{Conn, Query};
use crate::error::{PublishError, damaged};
use crate::files;
use crate::open::SqlLedger;
use crate::writer::HeadRow;
use crate::{sql, tree};

/// Tiles read and written at a time.
const ROUND: usize = 64;
/// How often what looks wrong among published files is looked at, and the pause between.
const LOOKS: u32 = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(400);

impl SqlLedger {
    /// Writes to `dir` what a reader of the log needs and is not there yet: `tile/…`, and last
    /// `checkpoint`. Returns the number of entries published. One caller at a time; a crash at
    /// any point is made good by the next call.
    pub async fn publish(&self, dir: &Path) -> Result<u64, PublishError> {
        let mut conn = self.readers.acquire().await?;
        let head = HeadRow::load(&mut conn).await?.ok_or_else(|| damaged("head: the row is missing"))?.head();
        let published = {
            let path = dir.join("checkpoint");
            blocking(&path, |path| match std::fs::read_to_string(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                other => other.map(Some),
            })
            .await?
        };
        if published.as_ref() == Some(&head.checkpoint) {
            return Ok(head.size);
        }
        // A checkpoint that cannot be read is no reason to stop: all tiles are written again.
        let before = published.and_then(|text| size_of(&text)).unwrap_or(0);
        if before > head.size {
            return Err(PublishError::Ahead { published: before, stored: head.size });
        }
        let tiles = new_tiles(before, head.size);
        let mut dirs = BTreeSet::new();
        for round in tiles.chunks(ROUND) {
            let mut files = Vec::new();
            for tile in round {
                let bytes = content(&mut conn, *tile).await?;
                let bytes = bytes.ok_or_else(|| damaged(format!("{tile} is not in the database")))?;
                files.push((dir.join(tile.to_string()), bytes));
            }
            dirs.extend(blocking(dir, move |dir| write_tiles(dir, &files)).await?);
        }
        drop(conn);
        tracing::debug!(point = "tiles written", size = head.size);
        blocking(dir, move |dir| {
            dirs.iter().try_for_each(|changed| files::sync_dir(changed))?;
            files::replace(&dir.join("checkpoint"), head.checkpoint.as_bytes(), 0o644)?;
            files::sync_dir(dir)?;
            // The partial forms of a tile that is full now serve nobody any more.
            for tile in tiles.iter().filter(|tile| tile.is_full()) {
                let partial = dir.join(format!("{tile}.p"));
                if partial.is_dir() {
                    std::fs::remove_dir_all(partial)?;
                }
            }
            Ok(())
        })
        .await?;
        Ok(head.size)
    }

    /// The bytes at `path` below the log's base: `checkpoint`, `tile/<L>/<N>[.p/<W>]` or
    /// `tile/entries/<N>[.p/<W>]`. `None` if the log has no such thing (yet).
    pub async fn tile(&self, path: &str) -> Result<Option<Vec<u8>>, LedgerError> {
        let mut conn = self.readers.acquire().await?;
        if path == "checkpoint" {
            return Ok(HeadRow::load(&mut conn).await?.map(|head| head.checkpoint.into_bytes()));
        }
        match path.parse::<Tile>() {
            Ok(tile) => content(&mut conn, tile).await,
            Err(_) => Ok(None),
        }
    }
}

impl SqlLedger {
    /// What is wrong with what readers of the log get from `dir`: a checkpoint that is not the log's,
    /// or tiles it needs that are not there. A writer publishes meanwhile, so what looks wrong is
    /// looked at again.
    pub async fn check_published(&self, dir: &Path) -> Result<Vec<Finding>, PublishError> {
        let mut looks = 1;
        loop {
            let findings = self.look_at_published(dir).await?;
            if findings.is_empty() || looks == LOOKS {
                return Ok(findings);
            }
            looks += 1;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn look_at_published(&self, dir: &Path) -> Result<Vec<Finding>, PublishError> {
        let finding = |object: &str, problem: String| Finding { object: format!("published log {object}"), problem };
        let checkpoint = dir.join("checkpoint");
        let text = blocking(&checkpoint, |path| match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        });
        let text: Option<String> = text.await?;
        // After the file: a checkpoint is published once the head has it.
        let head = self.head().await?;
        if head.size == 0 {
            return Ok(Vec::new());
        }
        let Some(text) = text else {
            return Ok(vec![finding("checkpoint", "is missing: the next start of the server writes it".to_owned())]);
        };
        let Some(size) = size_of(&text).filter(|size| *size <= head.size) else {
            return Ok(vec![finding("checkpoint", format!("is none of this log of {} entries", head.size))]);
        };
        let mut findings = Vec::new();
        // Of an older size only its signature is left to look at.
        let key = self.trust_values().log.parse::<VerifierKey>().ok();
        let signed = key.is_some_and(|key| Note::parse(&text).is_ok_and(|note| note.verify(&key).is_ok()));
        if !signed || (size == head.size && text != head.checkpoint) {
            findings.push(finding("checkpoint", format!("is not the one that was signed for {size} entries")));
        }
        let missing = blocking(dir, move |dir| {
            let names = new_tiles(0, size).into_iter().map(|tile| tile.to_string());
            Ok(names.filter(|name| !dir.join(name).is_file()).take(100).collect::<Vec<_>>())
        });
        findings.extend(missing.await?.iter().map(|name| finding(name, "is missing".to_owned())));
        Ok(findings)
    }
}

fn size_of(checkpoint: &str) -> Option<u64> {
    let note = Note::parse(checkpoint).ok()?;
    Checkpoint::parse(note.text()).ok().map(|checkpoint| checkpoint.size)
}

/// The bytes of a tile, if the stored tree fills it.
async fn content(conn: &mut Conn<'_>, tile: Tile) -> Result<Option<Vec<u8>>, LedgerError> {
    if let TileKind::Hashes(_) = tile.kind() {
        let Some(place) = tree::place(&tile) else { return Ok(None) };
        let stored = tree::load(conn, &[place]).await?.remove(&place);
        return Ok(stored.and_then(|stored| tree::of_width(&stored, tile).map(<[u8]>::to_vec)));
    }
    let Some(first) = tile.index().checked_mul(u64::from(TILE_WIDTH)) else { return Ok(None) };
    let rows = Query::new("SELECT leaf FROM entries WHERE idx >= $1 ORDER BY idx LIMIT $2")
        .bind(sql::signed(first)?)
        .bind(i64::from(tile.width()))
        .fetch_all(conn)
        .await?;
    if rows.len() < usize::from(tile.width()) {
        return Ok(None);
    }
    let leaves = rows.iter().map(|row| row.get::<&[u8]>(0)).collect::<Result<Vec<_>, _>>()?;
    encode_entries(&leaves).map(Some).map_err(|error| damaged(format!("entries: {error}")))
}

/// Writes files and returns the directories whose entries changed.
fn write_tiles(root: &Path, tiles: &[(PathBuf, Vec<u8>)]) -> io::Result<BTreeSet<PathBuf>> {
    let mut changed = BTreeSet::new();
    for (path, bytes) in tiles {
        if std::fs::read(path).is_ok_and(|found| found == *bytes) {
            // Perhaps of a run that ended before it synced.
            changed.insert(files::parent(path).to_owned());
            std::fs::File::open(path)?.sync_all()?;
            continue;
        }
        let dir = files::parent(path);
        std::fs::create_dir_all(dir)?;
        files::replace(path, bytes, 0o644)?;
        // All directories up to the root: any of them may be new.
        changed.extend(dir.ancestors().take_while(|dir| dir.starts_with(root)).map(Path::to_owned));
    }
    Ok(changed)
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, PublishError> {
    let owned = path.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&owned)).await;
    done.map_err(io::Error::other).flatten().map_err(|source| PublishError::Io { path: path.to_owned(), source })
}
