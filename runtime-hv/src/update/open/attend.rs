//! What the guest does while an update is open.
//!
//! Comes in: writes to pages that hold a copy of a datum, and threads that return from old code. Decided: which copy was written,
//! and who has left. Goes out: the other copy, made from it; the thread's own way back. All processors stand meanwhile.

use super::{Counts, Inside};
use crate::engine::{Attend, Pa, Stopped, Va, Vcpu};
use crate::guest::Kernel;
use crate::update::area::REPORT_ROOM;
use crate::update::data::{Datum, Direction};
use crate::update::hooks::Hooks;
use crate::update::plan::Plan;
use lpk_format::HookKind;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// An update that threads are still inside.
#[derive(Debug, Clone)]
pub struct Open {
    /// Id of the bundle.
    pub id: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Data with two copies.
    pub data: Vec<Datum>,
    /// The author's hooks.
    pub hooks: Option<Hooks>,
    /// Where threads return to that are inside.
    pub trampoline: Va,
    /// Who is inside.
    pub threads: Vec<Inside>,
    /// Since when.
    pub since: Instant,
    /// What has happened.
    pub counts: Counts,
    /// What went wrong last, for people.
    pub trouble: Option<String>,
}

/// All open updates of a guest.
#[derive(Debug, Clone, Default)]
pub struct Shared(Arc<Mutex<Vec<Open>>>);

impl Shared {
    /// The updates; they do not change while this is held.
    pub fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who attends.
    #[must_use]
    pub fn attendant(&self) -> Box<Attendant> {
        Box::new(Attendant(self.clone()))
    }
}

/// Attends to all open updates.
#[derive(Debug)]
pub struct Attendant(Shared);

impl Open {
    /// An update as it begins.
    #[must_use]
    pub fn new(id: &str, kernel: &Kernel, plan: &Plan, threads: Vec<Inside>) -> Open {
        Open {
            id: id.to_owned(),
            kernel: kernel.clone(),
            data: plan.data.iter().filter(|datum| datum.moves()).cloned().collect(),
            hooks: plan.hooks.clone(),
            trampoline: Va(plan.trampoline),
            counts: Counts { frames: threads.len() as u64, ..Counts::default() },
            threads,
            since: Instant::now(),
            trouble: None,
        }
    }

    /// Pages that hold a copy of a datum with two copies.
    #[must_use]
    pub fn pages(&self) -> BTreeSet<Pa> {
        self.data.iter().flat_map(Datum::pages).collect()
    }

    /// Carries what was written from one copy of a datum to the other.
    fn carry(&mut self, guest: &mut dyn Stopped, vcpu: Vcpu, index: usize, direction: Direction) {
        let datum = &self.data[index];
        let carried = datum.carry(guest, direction).map_err(|error| error.to_string()).and_then(|()| {
            let kind = if direction == Direction::ToNew { HookKind::SyncToNew } else { HookKind::SyncToOld };
            let hooks = self.hooks.as_ref();
            hooks.map_or(Ok(()), |hooks| hooks.synchronise(guest, &self.kernel, vcpu, kind, datum.old_address()))
        });
        match (carried, direction) {
            (Ok(()), Direction::ToNew) => self.counts.to_new += 1,
            (Ok(()), Direction::ToOld) => self.counts.to_old += 1,
            (Err(error), _) => {
                self.counts.lost += 1;
                self.trouble = Some(error);
            }
        }
    }
}

impl Attend for Attendant {
    fn written(&mut self, guest: &mut dyn Stopped, vcpu: Vcpu, page: Pa, before: &[u8], after: &[u8]) {
        for open in self.0.lock().iter_mut() {
            let mut hit = false;
            for index in 0..open.data.len() {
                for direction in [Direction::ToNew, Direction::ToOld] {
                    if open.data[index].is_source_written(direction, page, before, after) {
                        hit = true;
                        open.carry(guest, vcpu, index, direction);
                    }
                }
            }
            if !hit && open.pages().contains(&page) {
                open.counts.false_sharing += 1;
            }
        }
    }

    fn reported(&mut self, guest: &mut dyn Stopped, vcpu: Vcpu, _: u32) {
        let Ok(registers) = guest.registers(vcpu) else { return };
        for open in self.0.lock().iter_mut() {
            // What a function returns to has just been taken off the stack.
            let slot = registers.rsp.wrapping_sub(8);
            let here = registers.rip.wrapping_sub(open.trampoline.0) < REPORT_ROOM;
            let Some(index) = open.threads.iter().position(|thread| here && thread.slot == slot) else { continue };
            let thread = open.threads.remove(index);
            if let Some(hooks) = &open.hooks
                && let Err(error) = hooks.transition(guest, &open.kernel, vcpu, HookKind::Transition, &thread)
            {
                open.counts.lost += 1;
                open.trouble = Some(error);
            }
            open.counts.left += 1;
            if let Err(error) = guest.redirect(vcpu, thread.original) {
                open.trouble = Some(error.to_string());
            }
            return;
        }
    }
}
