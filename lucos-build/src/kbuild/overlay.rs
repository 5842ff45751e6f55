//! A source tree with some other files in it, without copying it.
//!
//! Comes in: a source tree and the texts of a few files. Decided: folders on the way to such a file are made, all
//! else is a symbolic link into the tree. Goes out: the overlay; the tree itself is only read.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Files that differ from the tree, by path relative to it; `None`: the file is not there.
pub type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Why an overlay could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the overlay {}", path.display())]
pub struct OverlayError {
    /// The file or folder at fault.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Makes an overlay in a folder that does not exist yet.
///
/// # Errors
/// [`OverlayError`] naming the file or folder.
pub fn make(tree: &Path, overlay: &Path, files: &Files) -> Result<(), OverlayError> {
    let mut root = Node::default();
    for (path, text) in files {
        let mut node = &mut root;
        for part in path.components() {
            node = node.children.entry(part.as_os_str()).or_default();
        }
        node.text = Some(text.as_deref());
    }
    folder(tree, overlay, &root)
}

/// A path without `.` and `..`.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(clean.pop()),
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

#[derive(Default)]
struct Node<'a> {
    children: BTreeMap<&'a OsStr, Node<'a>>,
    text: Option<Option<&'a [u8]>>,
}

fn folder(tree: &Path, overlay: &Path, node: &Node<'_>) -> Result<(), OverlayError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| OverlayError { path, source }
    };
    fs::create_dir_all(overlay).map_err(at(overlay))?;
    let names: Vec<OsString> = match fs::read_dir(tree) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>().map_err(at(tree))?,
        // A new folder of the diff.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(at(tree)(error)),
    };
    for name in names.iter().filter(|name| !node.children.contains_key(name.as_os_str())) {
        let link = overlay.join(name);
        std::os::unix::fs::symlink(tree.join(name), &link).map_err(at(&link))?;
    }
    for (name, child) in &node.children {
        let path = overlay.join(name);
        match child.text {
            Some(Some(text)) => fs::write(&path, text).map_err(at(&path))?,
            Some(None) => {}
            None => folder(&tree.join(name), &path, child)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_files_differ() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let tree = root.path().join("tree");
        for (path, text) in [("a/b/x.c", "x"), ("a/b/y.h", "y"), ("a/z.c", "z"), ("c/gone.c", "gone"), ("top", "top")] {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            fs::write(path, text).expect("written");
        }
        let overlay = root.path().join("overlay");
        let files = Files::from([
            (PathBuf::from("a/b/x.c"), Some(b"other".to_vec())),
            (PathBuf::from("c/gone.c"), None),
            (PathBuf::from("new/n.h"), Some(b"new".to_vec())),
        ]);
        make(&tree, &overlay, &files).expect("made");
        let read = |path: &str| fs::read_to_string(overlay.join(path)).ok();
        let expected = [
            ("a/b/x.c", Some("other")),
            ("a/b/y.h", Some("y")),
            ("a/z.c", Some("z")),
            ("c/gone.c", None),
            ("new/n.h", Some("new")),
            ("top", Some("top")),
        ];
        for (path, text) in expected {
            assert_eq!(read(path).as_deref(), text, "{path}");
        }
        let link = |path: &str| overlay.join(path).symlink_metadata().expect("there").file_type().is_symlink();
        assert!(link("a/b/y.h") && link("a/z.c") && !link("a/b/x.c") && !link("a/b") && link("top"));
        assert_eq!(fs::read_to_string(tree.join("a/b/x.c")).expect("there"), "x");
        assert!(tree.join("c/gone.c").exists() && !tree.join("new").exists());
    }
}
