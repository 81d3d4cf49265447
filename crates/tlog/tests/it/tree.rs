//! A reference tree, written straight from RFC 6962 §2.1, beside the real one.

use std::collections::HashMap;
use std::convert::Infallible;

use adamant_tlog::{
    CompactRange, Hash, Node, ProofError, Tile, TileKind, TreeError, consistency, empty_root, inclusion, leaf_hash,
    new_tiles, node_hash, node_in_tile, nodes_for_consistency, nodes_for_inclusion, root, verify_consistency,
    verify_inclusion,
};
use proptest::prelude::*;

/// MTH of §2.1.
fn reference_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [one] => *one,
        _ => {
            let (left, right) = leaves.split_at(reference_split(leaves.len()));
            node_hash(&reference_root(left), &reference_root(right))
        }
    }
}

fn reference_split(n: usize) -> usize {
    let mut k = 1;
    while k * 2 < n {
        k *= 2;
    }
    k
}

/// PATH of §2.1.1.
fn reference_path(m: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return vec![];
    }
    let k = reference_split(leaves.len());
    let (left, right) = leaves.split_at(k);
    if m < k {
        [reference_path(m, left), vec![reference_root(right)]].concat()
    } else {
        [reference_path(m - k, right), vec![reference_root(left)]].concat()
    }
}

/// SUBPROOF of §2.1.2.
fn reference_subproof(m: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    let n = leaves.len();
    if m == n {
        return if whole { vec![] } else { vec![reference_root(leaves)] };
    }
    let k = reference_split(n);
    let (left, right) = leaves.split_at(k);
    if m <= k {
        [reference_subproof(m, left, whole), vec![reference_root(right)]].concat()
    } else {
        [reference_subproof(m - k, right, false), vec![reference_root(left)]].concat()
    }
}

struct Tree {
    leaves: Vec<Hash>,
    nodes: HashMap<Node, Hash>,
    /// Root by size.
    roots: Vec<Hash>,
}

impl Tree {
    fn of(size: usize) -> Self {
        let mut tree = Self { leaves: vec![], nodes: HashMap::new(), roots: vec![empty_root()] };
        let mut range = CompactRange::new();
        for i in 0..size {
            let leaf = leaf_hash(&i.to_be_bytes());
            tree.leaves.push(leaf);
            range.append(leaf, |node, hash| assert_eq!(tree.nodes.insert(node, hash), None, "{node:?} twice"));
            tree.roots.push(range.root());
        }
        tree
    }

    /// Reads as a log of `size` leaves would: nodes that are not complete there do not exist.
    fn reader(&self, size: u64) -> impl FnMut(Node) -> Result<Hash, Infallible> {
        move |node| {
            assert!((node.index + 1) << node.level <= size, "{node:?} is not complete at {size}");
            Ok(self.nodes[&node])
        }
    }
}

fn flipped(proof: &[Hash], at: usize) -> Vec<Hash> {
    let mut bad = proof.to_vec();
    bad[at][at % 32] ^= 1 << (at % 8);
    bad
}

/// Proofs that differ from `proof` in one way each.
fn alterations(proof: &[Hash]) -> Vec<Vec<Hash>> {
    let mut all: Vec<Vec<Hash>> = (0..proof.len()).map(|at| flipped(proof, at)).collect();
    all.push([proof, &[[0; 32]]].concat());
    all.push([&[[0; 32]], proof].concat());
    if let [first, .., last] = proof
        && first != last
    {
        let mut swapped = proof.to_vec();
        swapped.swap(0, proof.len() - 1);
        all.push(swapped);
        all.push(proof[1..].to_vec());
    }
    if !proof.is_empty() {
        all.push(proof[..proof.len() - 1].to_vec());
        all.push(vec![]);
    }
    all
}

#[test]
fn published_roots() {
    let inputs: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    // github.com/transparency-dev/merkle, testonly/constants.go.
    let roots = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut range = CompactRange::new();
    for (size, expected) in roots.iter().enumerate() {
        let expected =
            (0..32).map(|i| u8::from_str_radix(&expected[2 * i..2 * i + 2], 16).unwrap()).collect::<Vec<_>>();
        assert_eq!(range.root()[..], expected, "size {size}");
        if let Some(input) = inputs.get(size) {
            range.append(leaf_hash(input), |_, _| {});
        }
    }
}

#[test]
fn roots_and_proofs_are_those_of_the_rfc() {
    let tree = Tree::of(300);
    for size in 0..=300usize {
        let leaves = &tree.leaves[..size];
        let n = size as u64;
        assert_eq!(tree.roots[size], reference_root(leaves), "size {size}");
        assert_eq!(root(n, tree.reader(n)), Ok(tree.roots[size]));
        // Against the definition at every size, but not for every leaf of every size.
        for index in (0..size).filter(|index| size < 70 || (index + size) % 23 == 0 || index + 2 > size) {
            let proof = inclusion(index as u64, n, tree.reader(n)).unwrap();
            assert_eq!(proof, reference_path(index, leaves), "leaf {index} of {size}");
        }
        for old in (1..=size).filter(|old| size < 70 || (old + size) % 23 == 0 || old + 2 > size) {
            let proof = consistency(old as u64, n, tree.reader(n)).unwrap();
            assert_eq!(proof, reference_subproof(old, leaves, true), "{old} to {size}");
        }
    }
}

#[test]
fn every_proof_up_to_300_verifies() {
    let tree = Tree::of(300);
    for size in 1..=300u64 {
        let new_root = tree.roots[usize::try_from(size).unwrap()];
        for at in 0..size {
            let place = usize::try_from(at).unwrap();
            let proof = inclusion(at, size, tree.reader(size)).unwrap();
            verify_inclusion(&tree.leaves[place], at, size, &proof, &new_root).unwrap();
            let proof = consistency(at, size, tree.reader(size)).unwrap();
            verify_consistency(at, &tree.roots[place], size, &new_root, &proof).unwrap();
        }
        verify_consistency(size, &new_root, size, &new_root, &[]).unwrap();
    }
}

#[test]
fn every_altered_proof_up_to_80_is_refused() {
    let tree = Tree::of(80);
    for size in 1..=80u64 {
        let new_root = tree.roots[usize::try_from(size).unwrap()];
        for at in 0..size {
            let place = usize::try_from(at).unwrap();
            let leaf = tree.leaves[place];
            let proof = inclusion(at, size, tree.reader(size)).unwrap();
            for bad in alterations(&proof).into_iter().filter(|bad| *bad != proof) {
                verify_inclusion(&leaf, at, size, &bad, &new_root).unwrap_err();
            }
            let other = (at + 1) % size;
            if other != at {
                verify_inclusion(&leaf, other, size, &proof, &new_root).unwrap_err();
                verify_inclusion(&tree.leaves[usize::try_from(other).unwrap()], at, size, &proof, &new_root)
                    .unwrap_err();
            }
            verify_inclusion(&leaf, at, size, &proof, &flipped(&[new_root], 0)[0]).unwrap_err();
            if at == 0 {
                continue;
            }
            let old_root = tree.roots[place];
            let proof = consistency(at, size, tree.reader(size)).unwrap();
            for bad in alterations(&proof).into_iter().filter(|bad| *bad != proof) {
                verify_consistency(at, &old_root, size, &new_root, &bad).unwrap_err();
            }
            verify_consistency(at, &flipped(&[old_root], 0)[0], size, &new_root, &proof).unwrap_err();
            verify_consistency(at, &old_root, size, &flipped(&[new_root], 0)[0], &proof).unwrap_err();
            verify_consistency(at, &tree.roots[place - 1], size, &new_root, &proof).unwrap_err();
        }
    }
}

#[test]
fn out_of_range_is_named() {
    let tree = Tree::of(5);
    assert_eq!(inclusion(5, 5, tree.reader(5)), Err(TreeError::Range(5, 5)));
    assert_eq!(inclusion(0, 0, tree.reader(5)), Err(TreeError::Range(0, 0)));
    assert_eq!(consistency(6, 5, tree.reader(5)), Err(TreeError::Range(6, 5)));
    let root = tree.roots[5];
    assert_eq!(verify_inclusion(&tree.leaves[0], 5, 5, &[], &root), Err(ProofError::Range(5, 5)));
    assert_eq!(verify_inclusion(&root, 0, 0, &[], &root), Err(ProofError::Range(0, 0)));
    assert_eq!(verify_consistency(6, &root, 5, &root, &[]), Err(ProofError::Range(6, 5)));
    assert_eq!(verify_consistency(5, &root, 5, &tree.roots[4], &[]), Err(ProofError::Root));
    assert_eq!(verify_consistency(0, &root, 5, &root, &[]), Err(ProofError::Root));
    assert_eq!(verify_consistency(0, &empty_root(), 5, &root, &[root]), Err(ProofError::Length(1)));
    assert!(nodes_for_inclusion(5, 5).is_none());
    assert!(nodes_for_consistency(6, 5).is_none());
    // The largest trees do not overflow.
    let (huge, any) = (u64::MAX >> 1, |_| Ok::<_, Infallible>([0; 32]));
    assert!(inclusion(huge - 1, huge, any).is_ok());
    assert!(consistency(huge - 1, huge, any).is_ok());
    assert!(verify_inclusion(&root, u64::MAX - 1, u64::MAX, &[root; 70], &root).is_err());
}

/// Hashes stored only as tiles, at their widest, serve every proof of every smaller tree.
#[test]
fn tiles_serve_proofs() {
    let tree = Tree::of(2100);
    let size = 2100u64;
    let mut stored: HashMap<String, Vec<u8>> = HashMap::new();
    let mut done = 0;
    for step in [1, 255, 256, 257, 600, 1024, 2000, 2100] {
        for tile in new_tiles(done, step).into_iter().filter(|tile| tile.kind() != TileKind::Entries) {
            let bytes: Vec<u8> = tile.nodes().flat_map(|node| tree.nodes[&node]).collect();
            stored.insert(tile.to_string(), bytes);
        }
        done = step;
    }
    let read = |node: Node| {
        let tile = Tile::of_node(node, size).unwrap();
        node_in_tile(node, tile, &stored[&tile.to_string()])
    };
    for (node, hash) in &tree.nodes {
        assert_eq!(read(*node).as_ref(), Ok(hash), "{node:?}");
    }
    for index in (0..size).step_by(37) {
        let proof = inclusion(index, size, read).unwrap();
        verify_inclusion(&tree.leaves[usize::try_from(index).unwrap()], index, size, &proof, &tree.roots[2100])
            .unwrap();
        let nodes = nodes_for_inclusion(index, size).unwrap();
        assert!(nodes.iter().all(|node| tree.nodes.contains_key(node)));
    }
    let first = Tile::in_tree(0, 0, size).unwrap();
    let bytes = &stored["tile/0/000"];
    assert!(node_in_tile(Node { level: 0, index: 256 }, first, bytes).is_err());
    assert!(node_in_tile(Node { level: 8, index: 0 }, first, bytes).is_err());
    assert!(node_in_tile(Node { level: 0, index: 0 }, first, &bytes[1..]).is_err());
    assert!(node_in_tile(Node { level: 7, index: u64::MAX }, first, bytes).is_err());
    assert_eq!(Tile::of_node(Node { level: 0, index: size }, size), None);
    assert_eq!(Tile::of_node(Node { level: 8, index: 8 }, size), None);
    assert_eq!(Tile::of_node(Node { level: 64, index: 0 }, size), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn random_trees(size in 301usize..2600, a in any::<u64>(), b in any::<u64>()) {
        let tree = Tree::of(size);
        let n = size as u64;
        let root = tree.roots[size];
        let index = a % n;
        let place = usize::try_from(index).unwrap();
        let proof = inclusion(index, n, tree.reader(n)).unwrap();
        prop_assert_eq!(&proof, &reference_path(place, &tree.leaves));
        verify_inclusion(&tree.leaves[place], index, n, &proof, &root).unwrap();
        for bad in alterations(&proof).into_iter().filter(|bad| *bad != proof) {
            prop_assert!(verify_inclusion(&tree.leaves[place], index, n, &bad, &root).is_err());
        }
        let old = b % n + 1;
        let old_root = tree.roots[usize::try_from(old).unwrap()];
        let proof = consistency(old, n, tree.reader(n)).unwrap();
        prop_assert_eq!(&proof, &reference_subproof(usize::try_from(old).unwrap(), &tree.leaves, true));
        verify_consistency(old, &old_root, n, &root, &proof).unwrap();
        for bad in alterations(&proof).into_iter().filter(|bad| *bad != proof) {
            prop_assert!(verify_consistency(old, &old_root, n, &root, &bad).is_err());
        }
    }

    #[test]
    fn verifiers_never_panic(
        index in any::<u64>(), size in any::<u64>(), proof in prop::collection::vec(any::<[u8; 32]>(), 0..80),
    ) {
        let _ = verify_inclusion(&[0; 32], index, size, &proof, &[0; 32]);
        let _ = verify_consistency(index, &[0; 32], size, &[1; 32], &proof);
    }

    #[test]
    fn tile_paths_keep_tiles(level in 0u8..8, index in 0u64..1 << 40, width in 1u16..=256) {
        for kind in [TileKind::Hashes(level), TileKind::Entries] {
            if let Ok(tile) = Tile::new(kind, index, width) {
                prop_assert_eq!(tile.to_string().parse::<Tile>(), Ok(tile));
            }
        }
    }

    #[test]
    fn tile_parser_never_panics(path in "tile/(entries|[0-9]{1,3})/[x0-9/.p]{0,40}") {
        if let Ok(tile) = path.parse::<Tile>() {
            prop_assert_eq!(tile.to_string(), path);
        }
    }
}
