//! adamant.toml, adamant.lock, native locks and build keys
