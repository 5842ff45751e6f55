//! What takes and drops locks, references and the like.
//!
//! Comes in: `primitives.txt`, the table that people edit. Decided: what a name does to which resource. Goes out:
//! [`Primitive`]s by name.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A group of resources with a rule of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Locks of any kind.
    Lock,
    /// References and counts.
    Reference,
    /// Read sections of RCU, and waiting for their end.
    Rcu,
    /// Preemption and migration.
    Preempt,
    /// Interrupts and soft interrupts.
    Irq,
}

impl Family {
    /// Identifier of its rule.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Lock => "lock-calls",
            Self::Reference => "reference-calls",
            Self::Rcu => "rcu-calls",
            Self::Preempt => "preempt-calls",
            Self::Irq => "irq-calls",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let all = [Self::Lock, Self::Reference, Self::Rcu, Self::Preempt, Self::Irq];
        all.into_iter().find(|family| family.rule().strip_suffix("-calls") == Some(name))
    }
}

/// Something that a function may hold.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// Its name in the table.
    pub name: &'static str,
    /// What holds for who has taken it and not dropped it: `a mutex locked`.
    pub state: &'static str,
    /// The family.
    pub family: Family,
}

/// What a primitive does to its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Takes it.
    Take,
    /// Takes it when the result is not zero.
    TakeUnlessZero,
    /// Takes it when the result is zero.
    TakeIfZero,
    /// Drops it.
    Drop,
    /// Neither.
    Other,
}

/// A function or macro that takes or drops something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Primitive {
    /// Its name.
    pub name: &'static str,
    /// What it works on.
    pub resource: &'static Resource,
    /// What it does to it.
    pub effect: Effect,
}

impl Primitive {
    /// What it does besides, by its name: `irqsave`, `irq`, `bh`. Empty for most.
    pub fn context(&self) -> &'static str {
        let name = self.name.trim_end_matches(')');
        let has = |suffix: &str| name.ends_with(suffix) || name.contains(&format!("{suffix}_"));
        match () {
            () if has("_irqsave") || has("_irqrestore") => "irqsave",
            () if has("_irq") => "irq",
            () if has("_bh") => "bh",
            () => "",
        }
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Primitives {
    by_name: HashMap<&'static str, Primitive>,
    guards: HashMap<&'static str, Primitive>,
}

impl Primitives {
    /// The table of this program.
    pub fn known() -> &'static Self {
        static TABLE: LazyLock<Primitives> =
            LazyLock::new(|| Primitives::parse(include_str!("primitives.txt")).expect("its own test reads the table"));
        &TABLE
    }

    /// The primitive of a name.
    pub fn get(&self, name: &str) -> Option<&Primitive> {
        self.by_name.get(name)
    }

    /// What an inline function that a class of `guard()` consists of does. It does so in any case: where it takes nothing, there is
    /// nothing to drop in the end.
    pub fn of_class(&self, function: &str) -> Option<Primitive> {
        let class = function.strip_prefix("class_")?;
        let (class, effect) = match class.strip_suffix("_constructor") {
            Some(class) => (class, Effect::Take),
            None => (class.strip_suffix("_destructor")?, Effect::Drop),
        };
        self.guard(class).map(|guard| Primitive { effect, ..*guard })
    }

    /// What a class of `guard()` takes, and drops at the end of the scope.
    pub fn guard(&self, class: &str) -> Option<&Primitive> {
        self.guards.get(class)
    }

    fn parse(text: &'static str) -> Result<Self, String> {
        let mut table = Self::default();
        let mut resource: Option<&'static Resource> = None;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let wrong = |what: &str| format!("{what}: `{line}`");
            if let Some((head, state)) = line.split_once(": ") {
                let (family, name) = head.split_once(' ').ok_or_else(|| wrong("no family and resource"))?;
                let family = Family::named(family).ok_or_else(|| wrong("unknown family"))?;
                // One for each line of the table, which is read once.
                resource = Some(Box::leak(Box::new(Resource { name, state, family })));
                continue;
            }
            let mut words = line.split_whitespace();
            let (effect, into) = match words.next() {
                Some("+") => (Effect::Take, &mut table.by_name),
                Some("-") => (Effect::Drop, &mut table.by_name),
                Some("?") => (Effect::TakeUnlessZero, &mut table.by_name),
                Some("!") => (Effect::TakeIfZero, &mut table.by_name),
                Some("=") => (Effect::Other, &mut table.by_name),
                Some("guard") => (Effect::Take, &mut table.guards),
                _ => return Err(wrong("unknown effect")),
            };
            let resource = resource.ok_or_else(|| wrong("no resource before it"))?;
            let guard = line.starts_with("guard ");
            for word in words {
                let name = if guard { Box::leak(format!("guard({word})").into_boxed_str()) } else { word };
                if into.insert(word, Primitive { name, resource, effect }).is_some() {
                    return Err(wrong(word));
                }
            }
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = Primitives::parse(include_str!("primitives.txt")).expect("a table");
        let mutex = table.get("mutex_lock_killable").expect("known");
        assert_eq!((mutex.resource.family, mutex.effect), (Family::Lock, Effect::TakeIfZero));
        assert_eq!(table.guard("mutex").map(|guard| guard.resource), Some(mutex.resource));
        assert_eq!(table.get("spin_lock_irqsave_nested").map(Primitive::context), Some("irqsave"));
        assert_eq!(table.get("spin_unlock_irqrestore").map(Primitive::context), Some("irqsave"));
        assert_eq!(table.get("read_unlock_bh").map(Primitive::context), Some("bh"));
        assert_eq!(table.get("mutex_lock").map(Primitive::context), Some(""));
        assert!(table.get("printk").is_none());
    }

    #[test]
    fn a_wrong_table_is_said() {
        for text in ["+ a\n", "lock x: y\n* a\n", "lock x: y\n+ a a\n", "tree x: y\n", "lock: y\n"] {
            assert!(Primitives::parse(text).is_err(), "{text}");
        }
    }
}
