//! The parsers of files in the store, for the fuzz targets.

use adamant_digest::Digest;

use super::recipe::{self, Recipe};

/// A recipe, with and without its last 32 bytes, which a fuzzer cannot guess.
pub(crate) fn recipe(bytes: &[u8]) {
    let whole = [bytes, Digest::of(bytes).as_bytes()].concat();
    for bytes in [bytes, &whole] {
        let head = recipe::head(bytes).map(|(size, places, _)| (size, places));
        let Some(recipe) = Recipe::parse(bytes) else { continue };
        assert_eq!(recipe.encode(), bytes);
        assert_eq!(head, Some((recipe.size, recipe.places.clone())));
        assert_eq!(recipe.runs().map(|(_, _, len)| len).sum::<u64>(), recipe.size);
    }
}
