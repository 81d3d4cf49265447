//! Unpacking from a store.

use std::os::unix::fs::PermissionsExt as _;

use adamant_deploy::Trees;

use crate::world;

#[tokio::test(flavor = "multi_thread")]
async fn tar_and_gzip_give_the_same_tree_and_damage_is_healed() {
    let world = world!("tar_and_gzip_give_the_same_tree_and_damage_is_healed");
    let plain = world.image(false, &[("etc/a", "1")]).await;
    let gzip = world.image(true, &[("etc/a", "1")]).await;
    assert_ne!(plain, gzip);
    let trees = Trees::new(world.dir().join("trees"), world.blobs.clone(), None);
    let first = trees.ensure(plain).await.unwrap();
    let second = trees.ensure(gzip).await.unwrap();
    assert_eq!(first.tree, second.tree);
    let root = world.dir().join("trees").join(first.tree.hex());
    for mount in ["proc", "dev", "tmp"] {
        assert!(root.join(mount).is_dir(), "{mount}");
    }
    assert_eq!(root.join("bin/app").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    trees.check(plain).await.unwrap().unwrap();

    std::fs::write(root.join("etc/a"), "2").unwrap();
    let damage = trees.check(plain).await.unwrap().unwrap_err().to_string();
    assert!(damage.contains("damaged at `etc/a`"), "{damage}");
    trees.heal(plain).await.unwrap();
    trees.check(plain).await.unwrap().unwrap();

    // A list that was changed together with the files does not help.
    std::fs::write(root.join("etc/a"), "2").unwrap();
    let listing = root.with_extension("json");
    let text = std::fs::read_to_string(&listing).unwrap();
    let (one, two) = (adamant_digest::Digest::of(b"1"), adamant_digest::Digest::of(b"2"));
    std::fs::write(&listing, text.replace(&one.to_string(), &two.to_string())).unwrap();
    let damage = trees.check(plain).await.unwrap().unwrap_err().to_string();
    assert!(damage.contains("list of its files was changed"), "{damage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_blobs_and_hostile_layers_leave_nothing() {
    let world = world!("wrong_blobs_and_hostile_layers_leave_nothing");
    let trees = world.dir().join("trees");
    let count = || std::fs::read_dir(&trees).unwrap().count();

    let layer = |path: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &b"x"[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let hostile = world.manifest(layer(b"../../escape"), tar).await;
    let error = world.local.trees().ensure(hostile).await.unwrap_err().to_string();
    assert!(error.contains("`../../escape` leaves the tree"), "{error}");

    // The damage is in bytes that unpacking alone would not notice.
    let image = world.manifest(layer(b"fine"), tar).await;
    let digest = adamant_digest::Digest::of(&layer(b"fine"));
    let blob = adamant_store::FsBlobs::open(&world.dir().join("blobs")).unwrap().path(digest);
    let mut bytes = std::fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() = 1;
    std::fs::set_permissions(&blob, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&blob, bytes).unwrap();
    assert!(world.local.trees().ensure(image).await.is_err());
    assert_eq!(count(), 0);

    world.keep(layer(b"fine")).await;
    world.local.trees().ensure(image).await.unwrap();
    assert!(count() > 0);
}
