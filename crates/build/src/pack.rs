//! Packs outputs into an OCI image: build ABI 1.
//!
//! Two layers, both plain sorted tar: the lower holds mount points, accounts and the runtime
//! packages (the same bytes for all artifacts with the same packages), the upper the outputs.
//! Nothing in an image says when, where, from which commit or by whom it was built.

use std::collections::BTreeSet;

use adamant_digest::{Digest, Hasher, Tree, TreeError, Verified};
use adamant_oci::{ArtifactMeta, Descriptor, ImageConfig, Manifest, RootFs, RuntimeConfig, media};
use adamant_recipe::Artifact;

use crate::abi;
use crate::canary::civil;
use crate::interpreter::Interpreter;
use crate::layout::{Layout, LayoutError, Node};
use crate::tarball::{self, LayerError};

/// How many interpreters lead from a program to one that needs none; the kernel follows as many.
const MAX_INTERPRETERS: usize = 5;

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// An output would hide part of the runtime packages.
    #[error("the output at /{0} would replace a directory that the runtime packages or the image itself need")]
    Hides(String),
    /// A path of the recipe.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A name no tree can hold.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// What the image runs is not in it.
    #[error("`run` names {0}, which is not in the image; add it to `files` or its package to `runtime`")]
    NoProgram(String),
    /// What the image runs cannot be run.
    #[error("`run` names {0}, which is not an executable file; chmod it in the build")]
    NotExecutable(String),
    /// What loads or interprets it is not in the image.
    #[error("`run` starts {program}, which {needs} {interpreter}, but that is not in the image; {fix}")]
    NoInterpreter {
        /// The program.
        program: String,
        /// How it needs the interpreter.
        needs: &'static str,
        /// What is missing.
        interpreter: String,
        /// What to do.
        fix: &'static str,
    },
}

/// An image before its layers are written.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The lower layer.
    pub(crate) base: Layout,
    /// Both layers as the program sees them.
    pub(crate) whole: Layout,
    /// Paths of the upper layer.
    upper: BTreeSet<String>,
    epoch: u64,
}

/// Which layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Base,
    Upper,
}

impl Image {
    /// Lays outputs over the runtime tree. Image paths go through the links of that tree, so
    /// `/bin/x` is where the program will look for it.
    pub(crate) fn new(base: Layout, outputs: Vec<(String, Node)>, epoch: u64) -> Result<Self, PackError> {
        let mut whole = base.clone();
        for (path, node) in outputs {
            let there = whole.resolve(&path, false)?;
            if there.is_empty() && matches!(node, Node::Dir { .. }) {
                continue;
            }
            let dir = matches!(node, Node::Dir { .. });
            // A directory that leads through a link: what is in it follows the link, too.
            let at = if dir { whole.resolve(&path, true)? } else { there.clone() };
            match (whole.node(&at), dir) {
                (Some(Node::Dir { .. }), true) => {}
                (Some(Node::Dir { .. }), false) => return Err(PackError::Hides(there)),
                _ => drop(whole.insert(&there, node)?),
            }
        }
        let new = |(path, node): &(&str, &Node)| base.node(path).is_none_or(|old| !unchanged(old, node));
        let upper = whole.iter().filter(new).map(|(path, _)| path.to_owned()).collect();
        Ok(Self { base, whole, upper, epoch })
    }

    /// Writes one layer.
    pub(crate) fn write(&self, layer: Layer, out: &mut impl std::io::Write) -> Result<(), LayerError> {
        match layer {
            Layer::Base => tarball::write(&self.base, |_| true, self.epoch, out),
            Layer::Upper => tarball::write(&self.whole, |path| self.upper.contains(path), self.epoch, out),
        }
    }

    /// Digest and size of one layer, without keeping it.
    pub(crate) fn measure(&self, layer: Layer) -> Result<(Digest, u64), LayerError> {
        let mut counter = Counter { hasher: Hasher::new(), size: 0 };
        self.write(layer, &mut counter)?;
        Ok((counter.hasher.finish(), counter.size))
    }

    /// The tree a host unpacks.
    pub(crate) fn tree(&self) -> Result<Tree, TreeError> {
        self.whole.tree()
    }

    /// What the recipe wants to run must be there.
    pub(crate) fn check(&self, artifact: &Artifact) -> Result<(), PackError> {
        let Some(program) = artifact.run.first() else { return Ok(()) };
        match self.whole.node(&self.whole.resolve(program, true)?) {
            Some(Node::File { mode, .. }) if mode & 0o111 != 0 => Ok(()),
            Some(_) => Err(PackError::NotExecutable(program.clone())),
            None => Err(PackError::NoProgram(program.clone())),
        }
    }
}

impl Image {
    /// What loads or interprets the program must be there, too. Not part of [`Self::check`]: an
    /// artifact that was accepted once stays what it is when it is built again.
    pub(crate) fn check_interpreters(&self, artifact: &Artifact) -> Result<(), PackError> {
        let Some(run) = artifact.run.first() else { return Ok(()) };
        let mut program = run.clone();
        for _ in 0..MAX_INTERPRETERS {
            let node = self.whole.node(&self.whole.resolve(&program, true)?);
            let Some(interpreter) = node.and_then(Interpreter::of) else { return Ok(()) };
            let path = interpreter.path().to_owned();
            // The kernel takes other paths from a directory that only the host knows.
            if !path.starts_with('/') {
                return Ok(());
            }
            // A path that cannot be in a tree is not in this one.
            let there = self.whole.resolve(&path, true).ok().and_then(|at| self.whole.node(&at));
            if !matches!(there, Some(Node::File { .. })) {
                let (needs, fix) = interpreter.words();
                return Err(PackError::NoInterpreter { program, needs, interpreter: path, fix });
            }
            program = path;
        }
        Ok(())
    }
}

fn unchanged(a: &Node, b: &Node) -> bool {
    match (a, b) {
        (Node::File { digest: a, mode: am, .. }, Node::File { digest: b, mode: bm, .. }) => a == b && am == bm,
        (Node::Link { target: a }, Node::Link { target: b }) => a == b,
        (Node::Dir { .. }, Node::Dir { .. }) => true,
        _ => false,
    }
}

struct Counter {
    hasher: Hasher,
    size: u64,
}

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Configuration and manifest over layers given by digest and size.
pub(crate) fn documents(artifact: &Artifact, epoch: u64, layers: &[(Digest, u64)]) -> (Verified, Manifest) {
    let config = config(artifact, epoch, layers.iter().map(|(digest, _)| *digest).collect()).print();
    let size = config.bytes().len() as u64;
    let described = Descriptor::new(media::OCI_CONFIG, config.digest(), size);
    let layers = layers.iter().map(|(digest, size)| Descriptor::new(media::OCI_LAYER, *digest, *size)).collect();
    let manifest = Manifest::image(described, layers, ArtifactMeta::default());
    (config, manifest)
}

/// The image configuration. Without layers it is part of the build key.
pub(crate) fn config(artifact: &Artifact, epoch: u64, layers: Vec<Digest>) -> ImageConfig {
    let (y, m, d) = civil(epoch / 86_400);
    let seconds = epoch % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    ImageConfig {
        created: Some(format!("{y:04}-{m:02}-{d:02}T{hour:02}:{minute:02}:{second:02}Z")),
        author: None,
        architecture: abi::ARCH.to_owned(),
        os: "linux".to_owned(),
        variant: None,
        config: RuntimeConfig {
            user: format!("{0}:{0}", abi::ID),
            exposed_ports: artifact.port.iter().map(|port| format!("{port}/tcp")).collect(),
            env: vec![format!("PATH={}", abi::PATH)],
            entrypoint: artifact.run.clone(),
            working_dir: "/".to_owned(),
            ..RuntimeConfig::default()
        },
        rootfs: RootFs::layers(layers),
        history: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Kind, finish, skeleton};
    use adamant_recipe::Template;

    fn artifact() -> Artifact {
        Artifact {
            name: "web".into(),
            path: ".".into(),
            template: Template::Make,
            toolchain: Vec::new(),
            runtime: Vec::new(),
            build: "make".into(),
            env: std::collections::BTreeMap::new(),
            files: [("/app/web".to_owned(), "web".to_owned())].into(),
            run: vec!["/app/web".into(), "--fast".into()],
            port: Some(8080),
            health: None,
            needs_commit: false,
            cpus: 2,
            memory_mb: 512,
            timeout_s: 60,
            sources: Vec::new(),
        }
    }

    fn base() -> Layout {
        let mut base = skeleton(Kind::Runtime).unwrap();
        base.insert("lib/libx.so", Node::bytes(0o644, *b"lib")).unwrap();
        finish(&mut base).unwrap();
        base
    }

    fn image(outputs: Vec<(&str, Node)>) -> Result<Image, PackError> {
        let outputs = outputs.into_iter().map(|(path, node)| (path.to_owned(), node)).collect();
        Image::new(base(), outputs, 315_532_800)
    }

    #[test]
    fn golden() {
        let image = image(vec![("app/web", Node::bytes(0o755, *b"program"))]).unwrap();
        image.check(&artifact()).unwrap();
        let layers = [image.measure(Layer::Base).unwrap(), image.measure(Layer::Upper).unwrap()];
        let (config, manifest) = documents(&artifact(), 315_532_800, &layers);
        let found = [
            layers[0].0.to_string(),
            layers[1].0.to_string(),
            config.digest().to_string(),
            manifest.digest().to_string(),
            image.tree().unwrap().digest().to_string(),
        ];
        let golden = [
            "sha256:8a52b045103e6247a22807848c6963d517351a80aa6d3c674a3f7245ff3462f5",
            "sha256:e676365837d72c657df1bbeeff33bb806f7510f9e06563332885e35237154ffb",
            "sha256:8de8bc442f8a16ab3c09442322f928f2e1ade865863a5a803cfbc17072949b0f",
            "sha256:43e8b7e5a86a32aa909042a5a7b2efce536154a195589279782375f5b46a286f",
            "sha256:6ea8646c1d9c9c868e0981d1b5e9f66c442cd600b385935bfc4541a924a2966c",
        ];
        assert_eq!(found, golden, "images changed: that needs a new build ABI");
    }

    #[test]
    fn outputs_go_through_the_links_of_the_base() {
        let image = image(vec![
            ("bin", Node::Dir { mode: 0o755 }),
            ("bin/web", Node::bytes(0o755, *b"x")),
            ("usr/lib/libx.so", Node::bytes(0o644, *b"lib")),
        ]);
        let image = image.unwrap();
        assert_eq!(image.upper.iter().collect::<Vec<_>>(), ["usr/bin/web"]);
        let mut run = artifact();
        run.run = vec!["/bin/web".into()];
        image.check(&run).unwrap();
    }

    #[test]
    fn refuses_programs_whose_interpreter_is_not_there() {
        use crate::interpreter::tests::elf;
        let node = |bytes: &[u8]| Node::bytes(0o755, bytes);
        let check = |program: &[u8], more: Vec<(&str, Node)>| {
            let mut outputs = vec![("app/web", node(program))];
            outputs.extend(more);
            let image = image(outputs).unwrap();
            image.check(&artifact()).unwrap();
            image.check_interpreters(&artifact()).map_err(|error| error.to_string())
        };
        let loader = "/lib64/ld-linux-x86-64.so.2";
        let error = check(&elf(Some(loader)), Vec::new()).unwrap_err();
        assert_eq!(
            error,
            "`run` starts /app/web, which is linked dynamically and needs /lib64/ld-linux-x86-64.so.2, but that is not in \
             the image; add `runtime = [\"libc6\"]`, or link it statically"
        );
        assert_eq!(check(&elf(None), Vec::new()), Ok(()));
        // As Debian has it: through two links.
        let debian = || {
            vec![
                ("usr/lib64/ld-linux-x86-64.so.2", Node::Link { target: "/lib/x86_64-linux-gnu/ld.so".into() }),
                ("usr/lib/x86_64-linux-gnu/ld.so", node(b"loader")),
            ]
        };
        assert_eq!(check(&elf(Some(loader)), debian()), Ok(()));
        // Nobody links through a link that leads nowhere.
        let dangling = vec![("usr/lib64/ld-linux-x86-64.so.2", Node::Link { target: "gone".into() })];
        assert!(check(&elf(Some(loader)), dangling).is_err());
        let error = check(b"#! /usr/bin/python3 -u\n", Vec::new()).unwrap_err();
        assert_eq!(
            error,
            "`run` starts /app/web, which is a script for /usr/bin/python3, but that is not in the image; add the package \
             with it to `runtime`, or correct the script's first line"
        );
        assert_eq!(check(b"#!/bin/sh\n", vec![("usr/bin/sh", node(&elf(None)))]), Ok(()));
        let error = check(b"#!/bin/sh\n", vec![("usr/bin/sh", node(&elf(Some(loader))))]).unwrap_err();
        assert!(error.starts_with("`run` starts /bin/sh, which is linked dynamically"), "{error}");
        // Round in a circle: the kernel's to refuse.
        assert_eq!(check(b"#!/app/web\n", Vec::new()), Ok(()));
    }

    #[test]
    fn refuses_outputs_that_hide_directories_and_programs_that_are_not_there() {
        assert!(matches!(image(vec![("usr", Node::bytes(0o755, *b"x"))]), Err(PackError::Hides(_))));
        let none = image(vec![("app/other", Node::bytes(0o755, *b"x"))]).unwrap();
        assert!(matches!(none.check(&artifact()), Err(PackError::NoProgram(_))));
        let plain = image(vec![("app/web", Node::bytes(0o644, *b"x"))]).unwrap();
        assert!(matches!(plain.check(&artifact()), Err(PackError::NotExecutable(_))));
    }
}
