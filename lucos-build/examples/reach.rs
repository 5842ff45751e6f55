use lucos_build::headers::{
    graph::Graph,
    text::{Header, reach},
};
use lucos_build::kbuild::listing::Listing;
use std::path::{Path, PathBuf};
use std::time::Instant;
fn main() {
    let src = Path::new("/root/.cache/lucos/kernels/6.1.190-1/source");
    let newer = Path::new("/root/.cache/lucos/kernels/6.1.192-2/source");
    let build = Path::new("/tmp/headers/bf");
    let t = Instant::now();
    let text = std::fs::read_to_string("/tmp/headers/mods.txt").unwrap();
    let joined = text.replace("\\\n", " ");
    println!("read {:?}", t.elapsed());
    let mut n = 0;
    let listing = Listing::parse(&joined, src, |_, _| n += 1);
    println!(
        "listing {:?} {} units, kept {n}, modules {}",
        t.elapsed(),
        listing.units.len(),
        listing.units.values().flatten().filter(|u| u.module.is_some()).count()
    );
    println!("twice: {:?}", listing.units.iter().filter(|(_, u)| u.len() > 1).map(|(p, _)| p).collect::<Vec<_>>());
    println!("{:?}\n{}\n{:?}", listing.folders, listing.more_folders.len(), listing.forced);
    let t = Instant::now();
    let g = Graph::build(src, build, &listing, listing.units.keys().cloned());
    println!(
        "graph {:?} {} files {} MB",
        t.elapsed(),
        g.files().len(),
        g.files().iter().map(|f| f.text.len()).sum::<usize>() / 1000000
    );
    for f in g.files().iter().filter(|f| f.incomplete) {
        println!("incomplete {}", f.name.display());
    }
    println!("chains {:?}", g.pasted());
    let units: std::collections::BTreeSet<usize> = listing
        .units
        .iter()
        .filter(|(_, u)| u.iter().any(|u| u.module.is_none()))
        .filter_map(|(p, _)| g.find(p))
        .collect();
    let mods: std::collections::BTreeSet<usize> = listing
        .units
        .iter()
        .filter(|(_, u)| u.iter().any(|u| u.module.is_some()))
        .filter_map(|(p, _)| g.find(p))
        .collect();
    for h in std::fs::read_to_string(std::env::var("HDRS").unwrap_or("/tmp/hdrs".into())).unwrap().lines() {
        let Some(id) = g.find(Path::new(h)) else {
            println!("{h}: not used");
            continue;
        };
        let t = Instant::now();
        let new = std::fs::read(newer.join(h)).unwrap();
        let r = reach(&g, &[Header { file: id, old: &g.files()[id].text, new: &new }], &Default::default());
        let see = g.users([id]);
        let f = r.files(&g);
        println!(
            "{h}: {:?} see {}+{} may {}+{} names {} hits {} {}",
            t.elapsed(),
            see.intersection(&units).count(),
            see.intersection(&mods).count(),
            f.intersection(&units).count(),
            f.intersection(&mods).count(),
            r.names.len(),
            r.hits.len(),
            r.whole.join("; ")
        );
        if std::env::var_os("V").is_some() {
            println!(
                "   {:?}\n   {:?}",
                r.names.iter().take(60).collect::<Vec<_>>(),
                r.hits.iter().take(40).map(|&h| &g.files()[h].name).collect::<Vec<_>>()
            );
        }
    }
    let _: Option<PathBuf> = None;
}
