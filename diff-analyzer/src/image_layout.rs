//! Layouts of whole images.
mod digest;
mod entry;
mod index;
mod name;
mod plan;
mod scan;
mod shape;
mod source;
mod unit;
mod walk;
pub use index::IndexError;
pub use source::{Image, SourceError};

/// x
pub fn probe(path: &std::path::Path) {
    let image = Image::open(path).expect("x");
    let t = std::time::Instant::now();
    let index = index::Index::read(&image, digest::Digest::start()).expect("y");
    println!("{:?} {} types {} defs {} vars {} units {}", t.elapsed(), index.types.len(), index.definitions, index.variables.len(), index.headers.len(), index.rust_units);
    let mut keys = std::collections::HashMap::new();
    for d in &index.types { keys.entry(d.key).or_insert_with(Vec::new).push(d); }
    println!("{} keys", keys.len());
    let mut n = 0;
    for k in keys.values().filter(|k| k.len() > 1) { n += 1; if n % 40 == 0 { println!("{:?} {} x{}", k[0].kind, String::from_utf8_lossy(k[0].name), k.len()); } }
    println!("{n} conflicted");
}
