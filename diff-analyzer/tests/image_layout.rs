//! The fast reader of whole images against the reader of single objects, on the same objects.
//!
//! Every C file of `testdata/layout` is compiled with compilers and options that write entries in different forms. Both readers
//! must have the same types, and find the same ones changed. Damaged objects are refused or read, never more.

use diff_analyzer::dwarf_layout::{TypeLayout, of_object};
use diff_analyzer::image_layout::{self, Image, Wanted};
use diff_analyzer::layout_diff;
use object::{Object as _, ObjectSection as _};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Compilers and options; a compiler that is not there is left out.
const WAYS: [&[&str]; 9] = [
    &["gcc", "-O2", "-g", "-gdwarf-5"],
    &["gcc", "-O2", "-g", "-gdwarf-4"],
    &["gcc", "-g3", "-gdwarf-4", "-gstrict-dwarf"],
    &["gcc", "-O2", "-g", "-gdwarf-5", "-gdwarf64"],
    // Names of any length in the entries themselves.
    &["gcc", "-O2", "-g", "-fno-merge-debug-strings"],
    &["gcc", "-O2", "-g", "-gz=zlib"],
    // No places of siblings, and types inside of types.
    &["clang", "-O2", "-g", "-gdwarf-5"],
    &["clang", "-O2", "-g", "-gdwarf-4"],
    &["clang", "-O0", "-g", "-gdwarf-5", "-fstandalone-debug"],
];

/// What the files of `testdata/layout` have little of: types in functions and in types, and members of all kinds.
const MORE: &str = "
struct outer { struct inner_with_a_long_name { char c; long l; } first; enum inside { A_FIRST = -3, A_SECOND } e; union { int i; struct { short s, t; }; }; };
struct bits { unsigned a : 3; long b : 40; const volatile struct { int q; } k; int (*f)(struct outer *, ...); void *v; char rest[]; };
typedef struct { struct bits *link; int matrix[3][4]; } named_by_a_typedef;
typedef enum { ONLY_ONE = 0x7fffffffffffffffLL } wide;
enum { WITHOUT_NAME, AND_SECOND };
struct outer global; named_by_a_typedef table[7]; static wide hidden = ONLY_ONE; extern struct bits far;
int use(int x) {
  struct local { int x; struct outer o; } here = { x };
  { union local_too { long l; char c[8]; } u; u.l = x; if (x) { struct deeper { union local_too *u; } d = { &u }; x += d.u->c[1]; } }
  return here.x + x + (int)hidden + WITHOUT_NAME;
}
";

fn is_there(compiler: &str) -> bool {
    Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn compile(source: &Path, object: &Path, way: &[&str]) -> Outcome {
    let output = Command::new(way[0]).args(&way[1..]).arg("-c").arg(source).arg("-o").arg(object).output()?;
    if !output.status.success() {
        return Err(format!("{way:?} {}: {}", source.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

fn types(object: &Path) -> Result<BTreeMap<String, TypeLayout>, Box<dyn std::error::Error>> {
    let types = image_layout::types(&Image::open(object)?, &Wanted::default())?.types;
    Ok(types.into_iter().map(|found| (found.layout.name.clone(), found.layout)).collect())
}

#[test]
fn both_readers_have_the_same_types_and_changes() -> Outcome {
    let work = tempfile::tempdir()?;
    let more = work.path().join("more");
    std::fs::create_dir(&more)?;
    std::fs::write(more.join("old.c"), MORE)?;
    std::fs::write(more.join("new.c"), MORE.replace("char c; long l;", "char c, d; long l;"))?;
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/layout");
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&root)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    cases.push(more);
    let ways: Vec<&[&str]> = WAYS.into_iter().filter(|way| is_there(way[0])).collect();
    assert!(ways.len() >= 6, "gcc is needed");
    let mut changed = 0;
    for (case, way) in cases.iter().flat_map(|case| ways.iter().map(move |way| (case, way))) {
        let [old, new] = ["old", "new"].map(|name| work.path().join(format!("{name}.o")));
        compile(&case.join("old.c"), &old, way)?;
        compile(&case.join("new.c"), &new, way)?;
        let about = format!("{} {way:?}", case.display());
        for object in [&old, &new] {
            let by_object = of_object(&std::fs::read(object)?)?.types;
            let by_image = types(object)?;
            assert!(by_image == by_object, "{about}:\n{by_image:#?}\nexpected:\n{by_object:#?}");
        }
        let difference = image_layout::compare(&Image::open(&old)?, &Image::open(&new)?, &Wanted::default())?;
        // Enums without a name are found by the enumerators they share, which only the comparison of images does.
        let has_name = |name: &String| !name.starts_with("enum {");
        let by_image: BTreeSet<String> =
            difference.types.into_iter().map(|found| found.change.name).filter(has_name).collect();
        let [old, new] = [of_object(&std::fs::read(&old)?)?, of_object(&std::fs::read(&new)?)?];
        let both = |name: &String| old.types.contains_key(name) && new.types.contains_key(name);
        let by_object: BTreeSet<String> = layout_diff::compare(&old, &new)
            .into_iter()
            .map(|change| change.name)
            .filter(both)
            .filter(has_name)
            .collect();
        assert_eq!(by_image, by_object, "{about}");
        changed += by_object.len();
    }
    assert!(changed > 20, "only {changed} changes");
    Ok(())
}

#[test]
fn damaged_images_are_refused_or_read_but_never_panic() -> Outcome {
    let work = tempfile::tempdir()?;
    let (source, object) = (work.path().join("more.c"), work.path().join("more.o"));
    std::fs::write(&source, MORE)?;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let (mut refused, mut read) = (0, 0);
    for way in WAYS.into_iter().filter(|way| is_there(way[0]) && !way.contains(&"-gz=zlib")) {
        compile(&source, &object, way)?;
        let good = std::fs::read(&object)?;
        let file = object::File::parse(&*good)?;
        let section = |name: &str| file.section_by_name(name).and_then(|section| section.file_range());
        let sections: Vec<(u64, u64)> = [".debug_info", ".debug_abbrev", ".debug_str"]
            .into_iter()
            .filter_map(section)
            .filter(|(_, length)| *length > 0)
            .collect();
        for _ in 0..300 {
            let mut bad = good.clone();
            let (start, length) = sections[next(sections.len())];
            for _ in 0..=next(3) {
                bad[start as usize + next(length as usize)] = [0, 0xff, 0x80, 1, next(256) as u8][next(5)];
            }
            if next(10) == 0 {
                bad.truncate(start as usize + next(length as usize));
            }
            std::fs::write(&object, &bad)?;
            let found = Image::open(&object).map_err(|_| ()).and_then(|image| {
                image_layout::types(&image, &Wanted::default()).map_err(|_| ())?;
                image_layout::compare(&image, &image, &Wanted::default()).map_err(|_| ())
            });
            match found {
                Ok(difference) => {
                    assert!(difference.is_empty(), "{way:?}: not equal to itself");
                    read += 1;
                }
                Err(()) => refused += 1,
            }
        }
    }
    assert!(refused > 100 && read > 100, "{refused} refused, {read} read");
    Ok(())
}
