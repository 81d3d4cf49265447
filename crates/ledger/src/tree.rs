//! The Merkle tree in SQL: a row for each tile of 256 hashes, the rightmost ones shorter, so
//! that an append rewrites a few kilobytes and a proof reads a few rows at any size.

use std::collections::{BTreeMap, HashMap};

use adamant_store::LedgerError;
use adamant_tlog::{CompactRange, Hash, Node, TILE_HEIGHT, TILE_WIDTH, Tile, TileKind, node_in_tile};

use crate::db::{Conn, Query};
use crate::error::damaged;
use crate::sql::{self, Target};

const WIDTH: u64 = TILE_WIDTH as u64;
/// Bytes of a hash.
const HASH: usize = 32;

/// Level and index of a row.
pub(crate) type Place = (u8, u64);

/// The right edge of a tree: all an appender needs.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    pub(crate) range: CompactRange,
    /// Tiles that are not full, and those that changed.
    tiles: BTreeMap<Place, Vec<u8>>,
    changed: bool,
}

/// Places of the tiles that are not full in a tree of `size` leaves.
fn open_tiles(size: u64) -> Vec<Place> {
    (0..8u8)
        .map(|level| (level, size >> (TILE_HEIGHT * level)))
        .filter(|(_, hashes)| hashes % WIDTH != 0)
        .map(|(level, hashes)| (level, hashes / WIDTH))
        .collect()
}

/// Bytes of a tile in a tree of `size` leaves.
fn filled(place: Place, size: u64) -> usize {
    Tile::in_tree(place.0, place.1, size).map_or(0, |tile| usize::from(tile.width()) * HASH)
}

impl Edge {
    /// The edge of the empty tree.
    pub(crate) fn empty() -> Self {
        Self { range: CompactRange::new(), tiles: BTreeMap::new(), changed: false }
    }

    /// The edge of the stored tree, whose compact range is `range`.
    pub(crate) async fn load(conn: &mut Conn<'_>, range: CompactRange) -> Result<Self, LedgerError> {
        let places = open_tiles(range.size());
        let tiles = load(conn, &places).await?;
        for place in &places {
            let (found, expected) = (tiles.get(place).map_or(0, Vec::len), filled(*place, range.size()));
            if found != expected {
                let (level, index) = place;
                let text = format!("tiles: level {level}, index {index} has {found} bytes, expected {expected}");
                return Err(damaged(text));
            }
        }
        Ok(Self { range, tiles: tiles.into_iter().collect(), changed: false })
    }

    /// Adds a leaf.
    pub(crate) fn append(&mut self, leaf: Hash) {
        let tiles = &mut self.tiles;
        self.range.append(leaf, |node, hash| {
            if node.level % TILE_HEIGHT == 0 {
                let place = (node.level / TILE_HEIGHT, node.index / WIDTH);
                tiles.entry(place).or_default().extend_from_slice(&hash);
            }
        });
        self.changed = true;
    }

    /// Full tiles, taken out; a long rebuild would otherwise hold all of them.
    pub(crate) fn take_full(&mut self) -> Vec<(Place, Vec<u8>)> {
        let full = usize::from(TILE_WIDTH) * HASH;
        let places: Vec<Place> =
            self.tiles.iter().filter(|(_, hashes)| hashes.len() >= full).map(|(p, _)| *p).collect();
        places.into_iter().filter_map(|place| Some((place, self.tiles.remove(&place)?))).collect()
    }

    /// Everything held.
    pub(crate) fn into_tiles(self) -> Vec<(Place, Vec<u8>)> {
        self.tiles.into_iter().collect()
    }
}

/// Stores tiles over what was there: they only ever grow.
pub(crate) async fn store(conn: &mut Conn<'_>, tiles: Vec<(Place, Vec<u8>)>) -> Result<(), LedgerError> {
    let target = Target {
        insert: "INSERT INTO tiles (level, idx, hashes)",
        columns: 3,
        conflict: "ON CONFLICT (level, idx) DO UPDATE SET hashes = excluded.hashes",
    };
    let rows = tiles
        .into_iter()
        .map(|((level, index), hashes)| Ok((i64::from(level), sql::signed(index)?, hashes)))
        .collect::<Result<Vec<_>, LedgerError>>()?;
    sql::insert(conn, target, rows, |(level, index, hashes), values| {
        values.add(level).add(index).add(hashes);
    })
    .await
}

/// Reads tiles; those that are not there are absent from the map.
pub(crate) async fn load(conn: &mut Conn<'_>, places: &[Place]) -> Result<HashMap<Place, Vec<u8>>, LedgerError> {
    if places.is_empty() {
        return Ok(HashMap::new());
    }
    let wanted = serde_json::to_string(places).map_err(|error| damaged(error.to_string()))?;
    let rows = Query::new(conn.dialect().pick([
        "SELECT t.level, t.idx, t.hashes FROM json_each($1) AS q CROSS JOIN tiles AS t
         ON t.level = json_extract(q.value, '$[0]') AND t.idx = json_extract(q.value, '$[1]')",
        "SELECT t.level, t.idx, t.hashes FROM json_array_elements($1::json) AS q(value) JOIN tiles AS t
         ON t.level = (q.value->>0)::bigint AND t.idx = (q.value->>1)::bigint",
    ]))
    .bind(wanted)
    .fetch_all(conn)
    .await?;
    let mut tiles = HashMap::new();
    for row in rows {
        let (level, index): (i64, i64) = (row.get(0)?, row.get(1)?);
        let level = u8::try_from(level).map_err(|_| damaged(format!("tiles: there is no level {level}")))?;
        tiles.insert((level, sql::unsigned(index)?), row.get(2)?);
    }
    Ok(tiles)
}

/// Hashes of nodes of the tree of `size` leaves.
pub(crate) async fn hashes(conn: &mut Conn<'_>, nodes: &[Node], size: u64) -> Result<HashMap<Node, Hash>, LedgerError> {
    let missing = |node: &Node| damaged(format!("node {} of level {} is not in the tiles", node.index, node.level));
    let tiles = nodes
        .iter()
        .map(|node| Tile::of_node(*node, size).ok_or_else(|| missing(node)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut places: Vec<Place> = tiles.iter().filter_map(place).collect();
    places.sort_unstable();
    places.dedup();
    let stored = load(conn, &places).await?;
    let mut hashes = HashMap::new();
    for (node, tile) in nodes.iter().zip(tiles) {
        let bytes = place(&tile).and_then(|place| stored.get(&place)).and_then(|bytes| of_width(bytes, tile));
        let hash = node_in_tile(*node, tile, bytes.ok_or_else(|| missing(node))?);
        hashes.insert(*node, hash.map_err(|error| damaged(format!("tiles: {error}")))?);
    }
    Ok(hashes)
}

/// The row a tile of hashes lies in.
pub(crate) fn place(tile: &Tile) -> Option<Place> {
    match tile.kind() {
        TileKind::Hashes(level) => Some((level, tile.index())),
        TileKind::Entries => None,
    }
}

/// The first bytes of a stored tile, as many as `tile` is wide.
pub(crate) fn of_width(stored: &[u8], tile: Tile) -> Option<&[u8]> {
    stored.get(..usize::from(tile.width()) * HASH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_holds_what_the_tree_has() {
        let mut edge = Edge::empty();
        let mut all: BTreeMap<Place, Vec<u8>> = BTreeMap::new();
        for i in 0..66_000u64 {
            edge.append([u8::try_from(i % 251).unwrap(); 32]);
            all.extend(edge.take_full());
        }
        let size = edge.range.size();
        let held: Vec<Place> = edge.tiles.keys().copied().collect();
        assert_eq!(held, open_tiles(size));
        all.extend(edge.into_tiles());
        for (place, hashes) in &all {
            assert_eq!(hashes.len(), filled(*place, size), "{place:?}");
        }
        assert_eq!(all.len(), 258 + 2 + 1);
        assert_eq!(open_tiles(0), []);
        assert_eq!(open_tiles(256), [(1, 0)]);
        assert_eq!(open_tiles(65_536), [(2, 0)]);
    }
}
