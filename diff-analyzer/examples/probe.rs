//! x
fn main() { for p in std::env::args().skip(1) { diff_analyzer::image_layout::probe(p.as_ref()); } }
