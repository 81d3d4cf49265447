//! Tiles: where hashes live in a C2SP `tlog-tiles` log.

use std::fmt;
use std::str::FromStr;

use crate::hash::{Hash, node_hash};
use crate::range::Node;

/// Levels of the tree in one tile.
pub const TILE_HEIGHT: u8 = 8;
/// Hashes, or entries, in a full tile.
pub const TILE_WIDTH: u16 = 256;

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TileKind {
    /// Hashes of tree level `8 * L`, for `L` from 0 to 7.
    Hashes(u8),
    /// The entries themselves.
    Entries,
}

/// A tile: its path is its `Display` form, `tile/<L>/<N>[.p/<W>]` or `tile/entries/<N>[.p/<W>]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tile {
    kind: TileKind,
    index: u64,
    width: u16,
}

/// Why something is not a tile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TileError {
    /// Level above 7, index too large for a tree of 2^63 leaves, or width not 1 to 256.
    #[error("no tile has level {level}, index {index} and width {width}")]
    Range {
        /// Tile level.
        level: u8,
        /// Tile index.
        index: u64,
        /// Number of hashes.
        width: u16,
    },
    /// Not a path of the specification.
    #[error("`{0}` is not the path of a tile")]
    Path(String),
    /// The bytes of a tile are not whole hashes, or too few or many.
    #[error("{found} bytes in tile {tile}, expected {expected}")]
    Length {
        /// The tile.
        tile: Tile,
        /// Bytes expected.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// The node does not lie in the tile, or is not complete there.
    #[error("node {index} of level {level} is not in tile {tile}")]
    Node {
        /// The tile.
        tile: Tile,
        /// Level of the node.
        level: u8,
        /// Index of the node.
        index: u64,
    },
}

impl Tile {
    /// A tile of hashes or entries; `width` is 1 to 256.
    pub fn new(kind: TileKind, index: u64, width: u16) -> Result<Self, TileError> {
        let level = match kind {
            TileKind::Hashes(level) => level,
            TileKind::Entries => 0,
        };
        if level > 7 || !(1..=TILE_WIDTH).contains(&width) || index > (u64::MAX >> 1 >> (8 * level)) >> 8 {
            return Err(TileError::Range { level, index, width });
        }
        Ok(Self { kind, index, width })
    }

    /// The tile of a tree of `size` leaves that holds what is needed for `node`; `None` if the
    /// node is not complete in such a tree.
    pub fn of_node(node: Node, size: u64) -> Option<Self> {
        let level = node.level / TILE_HEIGHT;
        if level > 7 || node.index >= size >> node.level {
            return None;
        }
        let above = node.level % TILE_HEIGHT;
        Self::in_tree(level, (node.index << above) >> TILE_HEIGHT, size)
    }

    /// The hash tile (level, index) as wide as a tree of `size` leaves fills it; `None` if it is
    /// empty there.
    pub fn in_tree(level: u8, index: u64, size: u64) -> Option<Self> {
        Self::filled(TileKind::Hashes(level), index, size.checked_shr(u32::from(level) * 8)?)
    }

    /// The entry bundle `index` as wide as a tree of `size` leaves fills it.
    pub fn entries(index: u64, size: u64) -> Option<Self> {
        Self::filled(TileKind::Entries, index, size)
    }

    fn filled(kind: TileKind, index: u64, hashes: u64) -> Option<Self> {
        let first = index.checked_mul(u64::from(TILE_WIDTH))?;
        let width = hashes.checked_sub(first)?.min(u64::from(TILE_WIDTH));
        Self::new(kind, index, u16::try_from(width).ok()?).ok()
    }

    /// What it holds.
    pub const fn kind(&self) -> TileKind {
        self.kind
    }

    /// Its position, from 0.
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// How many hashes or entries it holds, 1 to 256.
    pub const fn width(&self) -> u16 {
        self.width
    }

    /// Whether it holds 256, and so never changes again.
    pub const fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The nodes whose hashes make up the tile's bytes, in order; for entries, the leaves.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        let level = match self.kind {
            TileKind::Hashes(level) => level * TILE_HEIGHT,
            TileKind::Entries => 0,
        };
        let first = self.index * u64::from(TILE_WIDTH);
        (first..first + u64::from(self.width)).map(move |index| Node { level, index })
    }
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TileKind::Hashes(level) => write!(f, "tile/{level}/")?,
            TileKind::Entries => f.write_str("tile/entries/")?,
        }
        let mut groups = vec![self.index % 1000];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(rest % 1000);
            rest /= 1000;
        }
        for group in groups[1..].iter().rev() {
            write!(f, "x{group:03}/")?;
        }
        write!(f, "{:03}", groups[0])?;
        if !self.is_full() {
            write!(f, ".p/{}", self.width)?;
        }
        Ok(())
    }
}

impl FromStr for Tile {
    type Err = TileError;

    fn from_str(path: &str) -> Result<Self, TileError> {
        let bad = || TileError::Path(path.chars().take(100).collect());
        let rest = path.strip_prefix("tile/").ok_or_else(bad)?;
        let (kind, rest) = rest.split_once('/').ok_or_else(bad)?;
        let kind =
            if kind == "entries" { TileKind::Entries } else { TileKind::Hashes(kind.parse().map_err(|_| bad())?) };
        let (place, width) = match rest.split_once(".p/") {
            None => (rest, TILE_WIDTH),
            Some((place, width)) => (place, width.parse().map_err(|_| bad())?),
        };
        if place.len() > 40 {
            return Err(bad());
        }
        let mut index = 0u64;
        for group in place.split('/') {
            let digits = group.strip_prefix('x').unwrap_or(group);
            let number: u64 = digits.parse().map_err(|_| bad())?;
            index = index.checked_mul(1000).and_then(|high| high.checked_add(number)).ok_or_else(bad)?;
        }
        let tile = Self::new(kind, index, width)?;
        // One spelling: whatever is not what `Display` writes is refused.
        if tile.to_string() == path { Ok(tile) } else { Err(bad()) }
    }
}

/// The hash of `node` from the bytes of its tile.
pub fn node_in_tile(node: Node, tile: Tile, bytes: &[u8]) -> Result<Hash, TileError> {
    let outside = TileError::Node { tile, level: node.level, index: node.index };
    let TileKind::Hashes(level) = tile.kind else { return Err(outside) };
    let expected = usize::from(tile.width) * 32;
    if bytes.len() != expected {
        return Err(TileError::Length { tile, expected, found: bytes.len() });
    }
    if node.level / TILE_HEIGHT != level {
        return Err(outside);
    }
    let above = node.level % TILE_HEIGHT;
    let first = u128::from(node.index) << above;
    let start = u128::from(tile.index) * u128::from(TILE_WIDTH);
    let (Some(from), count) = (first.checked_sub(start), 1usize << above) else { return Err(outside) };
    let Ok(from) = usize::try_from(from) else { return Err(outside) };
    let (hashes, _) = bytes.as_chunks::<32>();
    let Some(hashes) = from.checked_add(count).and_then(|to| hashes.get(from..to)) else { return Err(outside) };
    let mut layer = hashes.to_vec();
    while layer.len() > 1 {
        layer = layer.chunks_exact(2).map(|pair| node_hash(&pair[0], &pair[1])).collect();
    }
    layer.first().copied().ok_or(outside)
}

/// The tiles that a tree of `new` leaves has and a tree of `old` leaves has not: those to
/// publish, at all levels, partial ones included; entry bundles first, then hashes by level.
/// Empty unless `old < new`.
pub fn new_tiles(old: u64, new: u64) -> Vec<Tile> {
    let mut tiles = Vec::new();
    if old >= new {
        return tiles;
    }
    let kinds = std::iter::once(TileKind::Entries).chain((0..8).map(TileKind::Hashes));
    for kind in kinds {
        let shift = if let TileKind::Hashes(level) = kind { 8 * u32::from(level) } else { 0 };
        let (before, after) = (old >> shift, new >> shift);
        if before == after {
            continue;
        }
        let width = u64::from(TILE_WIDTH);
        for index in before / width..=(after - 1) / width {
            tiles.extend(Tile::filled(kind, index, after));
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(kind: TileKind, index: u64, width: u16) -> String {
        let tile = Tile::new(kind, index, width).unwrap();
        assert_eq!(tile.to_string().parse::<Tile>(), Ok(tile));
        tile.to_string()
    }

    #[test]
    fn paths_of_the_specification() {
        assert_eq!(path(TileKind::Hashes(0), 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(path(TileKind::Hashes(1), 273, 1), "tile/1/273.p/1");
        assert_eq!(path(TileKind::Hashes(0), 70_000, 255), "tile/0/x070/000.p/255");
        assert_eq!(path(TileKind::Entries, 0, 256), "tile/entries/000");
        assert_eq!(path(TileKind::Entries, 1000, 3), "tile/entries/x001/000.p/3");
    }

    #[test]
    fn other_spellings_are_refused() {
        for bad in [
            "",
            "tile",
            "tile/0",
            "tile/0/",
            "tile/0/0",
            "tile/0/00",
            "tile/0/0000",
            "tile/00/000",
            "tile/8/000",
            "tile/+1/000",
            "tile/0/+00",
            "tile/0/x000/001",
            "tile/0/001/002",
            "tile/0/x001",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/257",
            "tile/0/000.p/01",
            "tile/0/000.p/",
            "tile/0/000.p/1/",
            "/tile/0/000",
            "tile/entries/0",
            "tile/data/000",
            "tile/-1/000",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/0/../000",
            "tile/0/x00a/000",
        ] {
            assert!(bad.parse::<Tile>().is_err(), "{bad}");
        }
        assert!(Tile::new(TileKind::Hashes(7), u64::MAX >> 1 >> 56, 1).is_err());
        assert!(Tile::new(TileKind::Hashes(7), 0, 1).is_ok());
    }

    #[test]
    fn new_tiles_are_what_grew() {
        let shown = |old, new| new_tiles(old, new).iter().map(Tile::to_string).collect::<Vec<_>>();
        assert_eq!(shown(0, 0), [""; 0]);
        assert_eq!(shown(5, 5), [""; 0]);
        assert_eq!(shown(0, 1), ["tile/entries/000.p/1", "tile/0/000.p/1"]);
        assert_eq!(shown(255, 256), ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]);
        assert_eq!(
            shown(250, 513),
            [
                "tile/entries/000",
                "tile/entries/001",
                "tile/entries/002.p/1",
                "tile/0/000",
                "tile/0/001",
                "tile/0/002.p/1",
                "tile/1/000.p/2",
            ]
        );
        assert_eq!(shown(256, 257), ["tile/entries/001.p/1", "tile/0/001.p/1"]);
        assert!(shown(0, 65536).contains(&"tile/2/000.p/1".to_owned()));
    }
}
