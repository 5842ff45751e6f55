//! x
use diff_analyzer::image_layout::*;
fn main() { 
 let a: Vec<String> = std::env::args().skip(1).collect();
 let old = Image::open(a[0].as_ref()).expect("x");
 let new = Image::open(a[1].as_ref()).expect("x");
 let t = std::time::Instant::now();
 let d = compare(&old, &new, &Wanted::default()).expect("y");
 println!("{:?} {:?}", t.elapsed(), d.images);
 for t in &d.types { println!("{:?} {} {} -> {} {:?} {:?} {}", t.change.effect, t.change.name, t.change.old_size, t.change.new_size, t.change.consequence_of, t.change.place, t.shares_name); }
 for t in &d.variables { if t.types.is_some() { println!("{t:?}"); } }
 println!("{} vars {}", d.variables.len(), d.variables.iter().filter(|v| v.types.is_none()).count());
 println!("only {:?} {:?}", d.only_types, d.only_variables);
}
