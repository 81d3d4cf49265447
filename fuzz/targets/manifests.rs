//! Manifests, indexes and image configurations.
#![no_main]

use adamant_digest::Digest;
use adamant_oci::{Content, ImageConfig, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes.to_vec()) {
        assert_eq!(manifest.bytes().bytes(), bytes);
        assert_eq!(manifest.digest(), Digest::of(bytes));
        assert_eq!(manifest.size(), bytes.len() as u64);
        let referrer = manifest.referrer();
        assert_eq!(referrer.size, bytes.len() as u64);
        // What was understood is understood again when it is printed.
        let meta = manifest.meta().clone();
        let printed = match manifest.content().clone() {
            Content::Image { config, layers } => Manifest::image(*config, layers, meta),
            Content::Index { manifests } => Manifest::index(manifests, meta),
        };
        let again = Manifest::parse(printed.bytes().bytes().to_vec()).expect("what is printed can be read");
        assert_eq!(again.content(), manifest.content());
        assert_eq!(again.meta(), manifest.meta());
        // The list of referrers that this one is in can be read.
        let list = Manifest::index(vec![referrer.clone()], Default::default());
        let list = Manifest::parse(list.into_bytes().into_bytes()).expect("a list of referrers can be read");
        assert_eq!(*list.content(), Content::Index { manifests: vec![referrer] });
    }
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(bytes) {
        serde_json::to_vec(&config).expect("a configuration can be printed");
    }
});
