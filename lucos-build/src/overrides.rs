//! What the author of a patch knows and no tool can see: a small file beside the diff.
//!
//! Comes in: `fix.toml` beside `fix.diff`, or the file given with `--overrides`. Decided: only its form. Goes out:
//! [`Overrides`], which are asked by rule, type and datum, and remember what was asked for; what nothing asked for is a
//! mistake, and said. `docs/classification.md` describes the file.

use crate::report::Reason;
use lpk_format::Vouched;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OverridesError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what `docs/classification.md` says.
    #[error("{}: {message}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Line in it, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// Findings that are no obstacle.
    #[serde(default)]
    silence: Vec<Silence>,
    /// What is to become of data, by name.
    #[serde(default)]
    data: BTreeMap<String, DatumOverride>,
    /// Where objects of types are, by name.
    #[serde(default, rename = "type")]
    types: BTreeMap<String, TypeOverride>,
    /// Where it was found.
    #[serde(skip)]
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Silence {
    rule: String,
    subject: String,
    reason: String,
    #[serde(skip)]
    used: AtomicBool,
}

/// Where the objects of a type are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TypeOverride {
    /// How it is known.
    pub reason: String,
    /// Where they come from.
    pub objects: Objects,
    /// The variable that points to their slab cache; with the unit that defines it where the name is not enough (`name@unit`).
    pub cache: Option<String>,
    /// Initial values of new members, by path; the others are zero.
    #[serde(default)]
    pub values: BTreeMap<String, i64>,
    #[serde(skip)]
    used: AtomicBool,
}

/// Where all objects of a type come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objects {
    /// Each is an allocation of its own by `kmalloc` or one of its kind.
    Kmalloc,
    /// Each is an object of one slab cache, which has no others.
    Cache,
}

/// What is to become of a datum.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DatumOverride {
    /// Why.
    pub reason: String,
    /// Another strategy than the one that was found.
    pub strategy: Option<Strategy>,
    /// Write initial contents also where the guest has changed them.
    #[serde(default)]
    pub overwrite: bool,
    /// Members of the new datum that are not carried by rule.
    #[serde(default)]
    pub to_new: BTreeMap<String, MemberRule>,
    /// Members of the old datum that are not carried by rule.
    #[serde(default)]
    pub to_old: BTreeMap<String, MemberRule>,
    #[serde(skip)]
    used: AtomicBool,
}

/// A strategy that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The old datum stays, and the bytes that differ are written over it.
    InPlace,
    /// A new datum takes its place.
    Move,
    /// The old datum stays as it is; new code uses it.
    Keep,
    /// A new datum takes its place, and the author's hooks carry the contents.
    Hooks,
}

/// What is done with a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum MemberRule {
    /// It gets a value.
    Constant(u64),
    /// A word.
    Word(Word),
}

/// What a member's rule says in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// It keeps what the target holds.
    Skip,
    /// It gets what the source holds, although its initial value changes.
    Carry,
}

impl Overrides {
    /// The file given, or the one beside the diff; nothing when there is none.
    ///
    /// # Errors
    /// [`OverridesError`] when it cannot be read or is not of its form.
    pub fn find(given: Option<&Path>, diff: &Path) -> Result<Self, OverridesError> {
        let beside = || Some(diff.with_extension("toml")).filter(|path| diff.as_os_str() != "-" && path.is_file());
        let Some(path) = given.map(Path::to_owned).or_else(beside) else { return Ok(Self::default()) };
        let text =
            std::fs::read_to_string(&path).map_err(|source| OverridesError::Read { path: path.clone(), source })?;
        let overrides: Self = toml::from_str(&text).map_err(|error| OverridesError::Form {
            path: path.clone(),
            line: error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1),
            message: error.message().to_owned(),
        })?;
        Ok(Self { path, ..overrides })
    }

    /// Where the file is; nothing when there is none.
    pub fn path(&self) -> Option<&Path> {
        Some(self.path.as_path()).filter(|path| !path.as_os_str().is_empty())
    }

    /// Whether a finding is no obstacle.
    pub fn silences(&self, rule: &str, subject: &str) -> bool {
        let found = self.silence.iter().filter(|silence| silence.rule == rule && silence.subject == subject);
        found.map(|silence| silence.used.store(true, Ordering::Relaxed)).count() > 0
    }

    /// What is said of a datum.
    pub fn datum(&self, name: &str) -> Option<&DatumOverride> {
        self.data.get(name).inspect(|datum| datum.used.store(true, Ordering::Relaxed))
    }

    /// Where objects of a type are said to be.
    pub fn objects(&self, name: &str) -> Option<&TypeOverride> {
        self.types.get(name).inspect(|found| found.used.store(true, Ordering::Relaxed))
    }

    /// What is said and was asked for by nothing.
    pub fn unused(&self) -> Vec<Reason> {
        let silence = self.silence.iter().filter(|silence| !silence.used.load(Ordering::Relaxed));
        let silence =
            silence.map(|silence| format!("no finding of rule {} is about `{}`", silence.rule, silence.subject));
        let data = self.data.iter().filter(|(_, datum)| !datum.used.load(Ordering::Relaxed));
        let data = data.map(|(name, _)| format!("the diff changes no existing datum `{name}`"));
        let types = self.types.iter().filter(|(_, of_type)| !of_type.used.load(Ordering::Relaxed));
        let types = types.map(|(name, _)| format!("the diff changes no existing type `{name}`"));
        let help = "correct the name, or take it out of the file";
        let file = self.path.display().to_string();
        silence
            .chain(data)
            .chain(types)
            .map(|message| Reason::new("override-unused", message).at(file.clone(), None).help(help))
            .collect()
    }

    /// What goes into the bundle.
    pub fn vouched(&self) -> Vec<Vouched> {
        let silence = self.silence.iter().map(|silence| Vouched {
            about: silence.rule.clone(),
            subject: silence.subject.clone(),
            says: "silenced".to_owned(),
            reason: silence.reason.clone(),
        });
        let data = self.data.iter().map(|(name, datum)| Vouched {
            about: "data".to_owned(),
            subject: name.clone(),
            says: datum.says(),
            reason: datum.reason.clone(),
        });
        let types = self.types.iter().map(|(name, of_type)| Vouched {
            about: "type".to_owned(),
            subject: name.clone(),
            says: of_type.says(),
            reason: of_type.reason.clone(),
        });
        silence.chain(data).chain(types).collect()
    }
}

impl TypeOverride {
    fn says(&self) -> String {
        let objects = match self.objects {
            Objects::Kmalloc => "every object is an allocation of its own by kmalloc".to_owned(),
            Objects::Cache => {
                format!(
                    "every object is of cache {}, which has no others",
                    self.cache.as_deref().unwrap_or("of no name")
                )
            }
        };
        let values = self.values.iter().map(|(member, value)| format!("{member} = {value}"));
        std::iter::once(objects).chain(values).collect::<Vec<_>>().join("; ")
    }
}

impl DatumOverride {
    fn says(&self) -> String {
        let strategy = match self.strategy {
            Some(Strategy::InPlace) => vec!["in place".to_owned()],
            Some(Strategy::Move) => vec!["moved".to_owned()],
            Some(Strategy::Keep) => vec!["kept".to_owned()],
            Some(Strategy::Hooks) => vec!["moved, its contents carried by hooks".to_owned()],
            None => Vec::new(),
        };
        let overwrite = self.overwrite.then(|| "overwritten".to_owned());
        let members = |direction: &str, rules: &BTreeMap<String, MemberRule>| {
            let rule = |(member, rule): (&String, &MemberRule)| match rule {
                MemberRule::Constant(value) => format!("{direction} {member} = {value:#x}"),
                MemberRule::Word(Word::Skip) => format!("{direction} {member} skipped"),
                MemberRule::Word(Word::Carry) => format!("{direction} {member} carried"),
            };
            rules.iter().map(rule).collect::<Vec<_>>()
        };
        let parts = strategy.into_iter().chain(overwrite);
        let parts = parts.chain(members("to new:", &self.to_new)).chain(members("to old:", &self.to_old));
        parts.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Overrides, OverridesError> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("fix.toml"), text).expect("written");
        Overrides::find(None, &folder.path().join("fix.diff"))
    }

    #[test]
    fn what_is_asked_for_is_answered_and_what_is_not_is_said() {
        let overrides = read(
            "[[silence]]\nrule = \"type-layout\"\nsubject = \"struct a\"\nreason = \"one static instance\"\n\
             [[silence]]\nrule = \"lock-calls\"\nsubject = \"f\"\nreason = \"no\"\n\
             [data.state]\nstrategy = \"move\"\nreason = \"why\"\nto-new = { limit = 5, \"list\" = \"skip\" }\n\
             [data.other]\nreason = \"why\"\noverwrite = true\n",
        )
        .expect("the form");
        assert!(overrides.silences("type-layout", "struct a"));
        assert!(!overrides.silences("type-layout", "struct b"));
        let state = overrides.datum("state").expect("is there");
        assert_eq!(state.strategy, Some(Strategy::Move));
        assert_eq!(state.to_new["limit"], MemberRule::Constant(5));
        let unused: Vec<String> = overrides.unused().into_iter().map(|reason| reason.message).collect();
        assert_eq!(
            unused,
            ["no finding of rule lock-calls is about `f`", "the diff changes no existing datum `other`"]
        );
        let says: Vec<String> = overrides.vouched().into_iter().map(|vouched| vouched.says).collect();
        let state = "moved; to new: limit = 0x5; to new: list skipped";
        assert_eq!(says, ["silenced", "silenced", "overwritten", state]);
    }

    #[test]
    fn where_objects_are_is_said() {
        let overrides = read(
            "[type.\"struct a\"]\nobjects = \"cache\"\ncache = \"a_cachep\"\nreason = \"r\"\nvalues = { x = 5, \"y.z\" = -1 }\n\
             [type.\"struct b\"]\nobjects = \"kmalloc\"\nreason = \"r\"\n",
        )
        .expect("the form");
        let of_a = overrides.objects("struct a").expect("is there");
        assert_eq!((of_a.objects, of_a.cache.as_deref(), of_a.values["y.z"]), (Objects::Cache, Some("a_cachep"), -1));
        let says: Vec<String> = overrides.vouched().into_iter().map(|vouched| vouched.says).collect();
        let of_a = "every object is of cache a_cachep, which has no others; x = 5; y.z = -1";
        assert_eq!(says, [of_a, "every object is an allocation of its own by kmalloc"]);
        assert_eq!(overrides.unused().len(), 1);
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line() {
        for (text, line) in [
            ("[data.x]\n", 1),
            ("[[silence]]\nrule = \"a\"\nsubject = \"b\"\n", 1),
            ("[data.x]\nreason = \"r\"\nstrategy = \"guess\"\n", 3),
            ("[data.x]\nreason = \"r\"\nto-new = { a = \"copy\" }\n", 3),
            ("what = 1\n", 1),
            ("[type.x]\nreason = \"r\"\nobjects = \"cache\"\nvalues = { a = \"skip\" }\n", 4),
        ] {
            match read(text) {
                Err(OverridesError::Form { line: found, .. }) => assert_eq!(found, line, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!(read("").expect("empty").unused().is_empty());
    }
}
