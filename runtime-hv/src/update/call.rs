//! Asking the guest: the support object is placed, runs in the guest's own time, and is taken away again.
//!
//! Comes in: a request. Decided: when to place the object, how long to wait, and when its pages can be given back: the guest
//! has answered, its interrupt is over and nobody is inside. Goes out: the answer, or a refusal.
//!
//! ```text
//!  stopped   the object's pages, its window, the processor's list of work, the interrupt   journal: action
//!  running   interrupt → queue_work → worker: the kernel's own functions, in process context   journal: document with `call`
//!  stopped   perhaps the next request of the same action, to the same object                   journal: action
//!  stopped   the list and the stacks are looked at; the pages go back to the byte           journal: document with the result
//! ```
//!
//! # Consistency on error
//! While the guest stands, a failure takes everything back. Once it runs nothing is: the request is in the document until the
//! guest has answered, and whoever holds the journal then finishes it ([`Updater::catch_up`]).

use super::area::{Area, is_plausible};
use super::transaction::{self, paused, write_all};
use super::{Times, UpdateError, Updater, errors, link, plan, quiet};
use crate::engine::{Engine, EngineError, Pa, ReadMemory, Va};
use crate::guest::arena::{self, Protection, Write};
use crate::guest::facts::{self, Facts};
use crate::guest::identity::KERNEL_HALF;
use crate::guest::irq_work;
use crate::guest::paging::PAGE;
use crate::guest::support::{Answer, Object, Operation, REQUEST_SIZE, Request, State, SupportError};
use crate::guest::{GuestError, Kernel};
use crate::journal::{Action, Boot, Call, Document, Record};
use lpk_format::{Bundle, MODULE_SPACE, Payload, SectionKind};
use std::time::{Duration, Instant};

/// Shortest and longest pause between two looks at a request.
const LOOKS: std::ops::Range<Duration> = Duration::from_micros(100)..Duration::from_millis(2);

/// A guest that can be asked.
pub(super) struct Context {
    /// The kernel, located.
    pub(super) kernel: Kernel,
    /// Its boot-time choices.
    pub(super) facts: Facts,
    boot: Boot,
    support: Payload,
    object: Object,
    bundle: String,
}

impl Context {
    /// A guest that can be asked, with the support object of a bundle.
    ///
    /// # Errors
    /// [`UpdateError`]; `NoSupport` when the bundle has none.
    pub(super) fn new(
        kernel: Kernel,
        facts: Facts,
        boot: Boot,
        bundle: &Bundle,
        id: &str,
    ) -> Result<Self, UpdateError> {
        let support = bundle.support.clone().ok_or(UpdateError::NoSupport)?;
        let object = Object::of(&support)?;
        Ok(Context { kernel, facts, boot, support, object, bundle: id.to_owned() })
    }

    fn action(&self, after: Document, writes: Vec<Write>, moving: Vec<u64>, list: Option<u64>) -> Action {
        let (sequence, boot, bundle) = (after.sequence, self.boot.clone(), self.bundle.clone());
        Action { sequence, boot, bundle, owner_paused: false, writes, moving, list, mapped: Vec::new(), after }
    }
}

impl<E: Engine> Updater<E> {
    /// Asks the guest and waits for its answer; the document then has the result. The object stays in its place, to be asked
    /// again or to be taken away ([`Self::leave`], or with the jumps). `contents`, bytes by address, are written first, in the
    /// same stop; only for an object that is in its place.
    ///
    /// # Errors
    /// [`UpdateError`]: `Silent` when no answer comes (the request is then withdrawn, or stays in the document), `Declined`
    /// when the guest answers with an error.
    pub(super) fn ask(
        &mut self,
        context: &Context,
        request: &Request,
        area: &Area,
        contents: &[(u64, Vec<u8>)],
        times: &mut Times,
    ) -> Result<Answer, UpdateError> {
        if self.engine.is_paused()? {
            return Err(UpdateError::OwnerPaused);
        }
        for attempt in 1..=self.patience.attempts.max(1) {
            if attempt > 1 {
                std::thread::sleep(self.patience.wait);
            }
            if self.start(context, request, area, contents, times)? {
                return self.wait(context, times);
            }
        }
        let who = "the guest keeps changing the memory in question".to_owned();
        Err(UpdateError::Busy { who, attempts: self.patience.attempts })
    }

    /// Waits for the answer to the request in the document.
    fn wait(&mut self, context: &Context, times: &mut Times) -> Result<Answer, UpdateError> {
        let Some(call) = self.document.call.clone() else { return Err(UpdateError::NoSupport) };
        let deadline = Instant::now() + self.patience.answer;
        let mut pause = LOOKS.start;
        loop {
            let answer = answer(&self.engine, &call)?;
            if answer.state == State::Done {
                if !call.answered {
                    self.document.call = Some(Call { answered: true, ..call.clone() });
                    take_over(&self.engine, &mut self.document, context, &call, &answer)?;
                }
                let operation = call.operation;
                return if answer.result == 0 {
                    Ok(answer)
                } else {
                    Err(UpdateError::Declined { operation, error: answer.result })
                };
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOKS.end);
        }
        self.leave(context, times)?;
        // It has answered after all, or was taken off the list.
        let begun = self.document.call.is_some();
        Err(UpdateError::Silent { operation: call.operation, patience: self.patience.answer, begun })
    }

    /// Takes the object away: its request is answered, or has not begun. One that the guest is at work on stays in the
    /// document.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub(super) fn leave(&mut self, context: &Context, times: &mut Times) -> Result<(), UpdateError> {
        for attempt in 1..=self.patience.attempts.max(1) {
            if attempt > 1 {
                std::thread::sleep(self.patience.wait);
            }
            let Some(call) = self.document.call.clone() else { return Ok(()) };
            self.conclude(context, &call, attempt >= self.patience.attempts, times)?;
        }
        Ok(())
    }

    /// Places the object, or takes the one that is there, and raises the interrupt. Says whether it was the moment.
    fn start(
        &mut self,
        context: &Context,
        request: &Request,
        area: &Area,
        contents: &[(u64, Vec<u8>)],
        times: &mut Times,
    ) -> Result<bool, UpdateError> {
        let again = self.document.call.clone().filter(|call| call.answered);
        let action = match &again {
            Some(call) => self.plan_again(context, call, request, area)?,
            None => self.plan_call(context, request, area)?,
        };
        let Some(call) = action.after.call.clone() else { return Ok(false) };
        let flags = again.map(|call| Pa(call.work_pa + u64::from(context.object.flags)));
        let claimed = context.object.claimed;
        let busy = self.change(
            &action,
            times,
            |engine| {
                if let Some(flags) = flags
                    && word(engine, flags)? & claimed != 0
                {
                    return Ok(Some("its interrupt is not over".to_owned()));
                }
                for (at, bytes) in pages(contents) {
                    let pa = context.kernel.translate(engine, Va(at), "memory that it gave")?;
                    engine.write(pa, bytes)?;
                }
                Ok(None)
            },
            |engine| engine.interrupt(call.apic_id, call.vector),
        )?;
        if busy.is_none() {
            self.document = action.after;
            self.journal.finish(&self.document)?;
        }
        Ok(busy.is_none())
    }

    /// The next request to the object that is in its place.
    fn plan_again(
        &mut self,
        context: &Context,
        call: &Call,
        request: &Request,
        area: &Area,
    ) -> Result<Action, UpdateError> {
        let Context { support, object, .. } = context;
        let read = |pa: u64, len: usize| {
            let mut bytes = vec![0; len];
            self.engine.read(Pa(pa), &mut bytes).map(|()| bytes)
        };
        let write =
            |pa: u64, new: &[u8]| Ok::<_, EngineError>(Write { pa, old: read(pa, new.len())?, new: new.to_vec() });
        let bytes = request.to_bytes();
        let (operation, rest) = bytes.split_at(4);
        let flags = (object.work + object.flags) as usize;
        let flags = support.data.get(flags..flags + 4).unwrap_or_default();
        let head = read(call.head, 8)?;
        // What is asked is the one thing that the guest does not write.
        let mut writes = vec![
            write(call.request, operation)?,
            write(call.request + 4, rest)?,
            write(call.work_pa + u64::from(object.flags), flags)?,
            write(call.work_pa + u64::from(object.next), &head)?,
        ];
        let node = call.work + u64::from(object.next);
        writes.push(Write { pa: call.head, old: head, new: node.to_le_bytes().to_vec() });
        let moving = writes.iter().skip(1).map(|write| write.pa).collect();
        let after = Document {
            sequence: self.document.sequence + 1,
            call: Some(Call { operation: request.operation, area: area.clone(), answered: false, ..call.clone() }),
            ..self.document.clone()
        };
        Ok(context.action(after, writes, moving, Some(call.head)))
    }

    /// The object at its place with the request in it, and on a processor's list.
    fn plan_call(&mut self, context: &Context, request: &Request, area: &Area) -> Result<Action, UpdateError> {
        let Context { kernel, facts, support, object, .. } = context;
        let registers = self.engine.registers()?;
        let queue = irq_work::queue(&self.engine, kernel, &registers)?;
        let pool = arena::pool(&self.engine, kernel, self.engine.arena())?;
        let mut state = self.document.arena.clone();
        let allocation = format!("support {}", self.document.sequence + 1);
        let sizes = [
            (Protection::Text, link::text_size(support, facts)),
            (Protection::Rodata, support.rodata.len() as u64),
            (Protection::Data, link::data_size(support)),
        ];
        let placed = arena::take(&self.engine, kernel, &pool, &mut state, &allocation, sizes)?;
        let place = |index: usize| placed.get(index).copied().flatten();
        let va = |index: usize| place(index).map_or(0, |run| run.va.0);
        let addresses = link::Addresses { text: va(0), rodata: va(1), data: va(2) };
        let mut linked = link::link(support, &addresses, facts)?;
        let data = place(2).ok_or_else(|| SupportError::Object("it has no data".into()))?;

        let mut head = [0; 8];
        self.engine.read(queue.head, &mut head)?;
        put(&mut linked.data, object.request, &request.to_bytes())?;
        put(&mut linked.data, object.work + object.next, &head)?;
        let work = data.va.0 + u64::from(object.work);
        let call = Call {
            operation: request.operation,
            area: area.clone(),
            allocation,
            code: va(0)..va(0) + linked.text.len() as u64,
            request: data.pa.0 + u64::from(object.request),
            work,
            work_pa: data.pa.0 + u64::from(object.work),
            head: queue.head.0,
            apic_id: queue.apic_id,
            vector: queue.vector,
            answered: false,
        };
        let contents: Vec<(Pa, Vec<u8>)> = placed
            .iter()
            .zip([linked.text, linked.rodata, linked.data])
            .filter_map(|(run, bytes)| run.map(|run| (run.pa, bytes)))
            .collect();
        let mut writes = arena::transition(&self.document.arena, &state, &contents);
        let node = work + u64::from(object.next);
        writes.push(Write { pa: queue.head.0, old: head.to_vec(), new: node.to_le_bytes().to_vec() });
        let moving = vec![queue.head.0, data.pa.0];
        let after = Document {
            boot: Some(context.boot.clone()),
            sequence: self.document.sequence + 1,
            arena: state,
            call: Some(call),
            ..self.document.clone()
        };
        Ok(context.action(after, writes, moving, Some(queue.head.0)))
    }

    /// Ends a request: the guest is stopped, and if it has answered and left, its pages are given back. One that has not begun
    /// is taken off the list. `insist` keeps the pages of a request that was answered when somebody seems to be inside.
    fn conclude(&mut self, context: &Context, call: &Call, insist: bool, times: &mut Times) -> Result<(), UpdateError> {
        let memory = plan::reclaim(&self.engine, &self.document.arena, &call.allocation)?;
        let answered = answer(&self.engine, call)?;
        let withdrawn = match answered.state {
            State::Done => None,
            State::Running => return Ok(()),
            State::Asked => match self.off_the_list(context, call)? {
                Some(write) => Some(write),
                None => return Ok(()), // its interrupt is being handled
            },
        };
        let mut after = Document { arena: memory.arena, ..self.document.clone() };
        after.call = None;
        after.sequence += 1;
        let begun = withdrawn.is_none();
        let taken_over = if begun && !call.answered {
            take_over(&self.engine, &mut after, context, call, &answered)
        } else {
            Ok(())
        };
        let list = withdrawn.as_ref().map(|write| write.pa);
        let writes = withdrawn.into_iter().chain(memory.writes).collect();
        let mut action = context.action(after, writes, Vec::from_iter(list), list);
        action.owner_paused = self.engine.is_paused()?;
        let flags = Pa(call.work_pa + u64::from(context.object.flags));
        let busy = self.change(
            &action,
            times,
            |engine| {
                if begun && word(engine, flags)? & context.object.claimed != 0 {
                    return Ok(Some("its interrupt is not over".to_owned()));
                }
                quiet::nobody_in(engine, &context.kernel, std::slice::from_ref(&call.code))
            },
            |_| Ok(()),
        )?;
        let mut after = action.after;
        if busy.is_some() {
            if !(insist && begun) {
                return Ok(());
            }
            // It has answered all the same; the pages it leaves behind are counted.
            after.arena = self.document.arena.clone();
            let kept = after.arena.allocations.iter_mut().filter(|allocation| allocation.bundle == call.allocation);
            kept.for_each(|allocation| allocation.kept = true);
        }
        self.document = after;
        self.journal.finish(&self.document)?;
        taken_over
    }

    /// The write that takes a request off the list of its processor; `None` when it is not on it.
    fn off_the_list(&self, context: &Context, call: &Call) -> Result<Option<Write>, UpdateError> {
        let next = u64::from(context.object.next);
        let found = irq_work::find(&self.engine, &context.kernel, Pa(call.head), next, Va(call.work))?;
        let Some(place) = found else { return Ok(None) };
        let mut after = [0; 8];
        self.engine.read(Pa(call.work_pa + next), &mut after)?;
        let old = (call.work + next).to_le_bytes().to_vec();
        Ok(Some(Write { pa: place.0, old, new: after.to_vec() }))
    }

    /// Finishes what an earlier action left to the guest: a request without an answer, and areas that no bundle uses.
    ///
    /// # Errors
    /// [`UpdateError::Silent`] when the guest is still at work.
    pub(super) fn catch_up(&mut self, times: &mut Times) -> Result<(), UpdateError> {
        if let Some(call) = self.document.call.clone() {
            let context = self.context(&call.area.bundle)?;
            self.remind(&call)?;
            match self.wait(&context, times) {
                Err(error @ UpdateError::Silent { begun: true, .. }) => return Err(error),
                Err(UpdateError::Silent { .. } | UpdateError::Declined { .. }) | Ok(_) => {}
                Err(error) => return Err(error),
            }
            self.leave(&context, times)?;
        }
        while let Some(area) = self.orphan() {
            let context = self.context(&area.bundle)?;
            match self.release(&context, &area, times) {
                // It is kept from now on.
                Err(UpdateError::Declined { .. }) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether something is left to be finished that [`Self::catch_up`] can finish now.
    pub(super) fn is_behind(&self) -> bool {
        let answered = |call: &Call| answer(&self.engine, call).is_ok_and(|answer| answer.state == State::Done);
        self.document.call.as_ref().map_or_else(|| self.orphan().is_some(), answered)
    }

    /// An area that no bundle uses.
    fn orphan(&self) -> Option<Area> {
        self.document.areas.iter().find(|area| !area.kept && !self.document.is_applied(&area.bundle)).cloned()
    }

    /// The guest as seen with the support object of a bundle that was applied, or was to be.
    pub(super) fn context(&mut self, id: &str) -> Result<Context, UpdateError> {
        let bundle = self.bundle(id)?;
        let (kernel, boot) = self.same_boot(&bundle)?;
        // The module itself may be gone by now; what new code is linked with is not asked for here.
        let wanted = super::admit::wanted(&bundle).into_iter().filter(|link| !MODULE_SPACE.contains(link));
        let facts = facts::read(&self.engine, &kernel, wanted)?;
        Context::new(kernel, facts, boot, &bundle, id)
    }

    /// Raises the interrupt of a request again that nobody has looked at.
    fn remind(&mut self, call: &Call) -> Result<(), UpdateError> {
        if answer(&self.engine, call)?.state == State::Asked {
            self.stop(&call.area.bundle, &mut Times::default(), |engine| {
                Ok(engine.interrupt(call.apic_id, call.vector)?)
            })?;
        }
        Ok(())
    }

    /// A stop in which nothing of the guest's own is written. It is in the journal all the same: whoever finds the guest
    /// stopped must know that it was us.
    pub(super) fn stop<T>(
        &mut self,
        bundle: &str,
        times: &mut Times,
        work: impl FnOnce(&mut E) -> Result<T, UpdateError>,
    ) -> Result<T, UpdateError> {
        let boot = self.document.boot.clone().ok_or(UpdateError::OtherBoot)?;
        let action = Action {
            sequence: self.document.sequence + 1,
            boot,
            bundle: bundle.to_owned(),
            owner_paused: self.engine.is_paused()?,
            writes: Vec::new(),
            moving: Vec::new(),
            list: None,
            mapped: Vec::new(),
            after: self.document.clone(),
        };
        self.journal.begin(&action, &self.document)?;
        self.unsettled = true;
        let (done, time) = paused(&mut self.engine, work)?;
        self.unsettled = false;
        times.paused(time);
        self.journal.forget_action()?;
        done
    }

    /// One stop of the guest: looks, writes if it is the moment, and then does `last`. Says why it was not the moment.
    ///
    /// # Consistency on error
    /// Nothing is written, or the action stays in the journal and the updater is unsettled.
    fn change(
        &mut self,
        action: &Action,
        times: &mut Times,
        check: impl FnOnce(&mut E) -> Result<Option<String>, UpdateError>,
        last: impl FnOnce(&mut E) -> Result<(), EngineError>,
    ) -> Result<Option<String>, UpdateError> {
        self.journal.begin(action, &self.document)?;
        let (journal, resets) = (&self.journal, self.resets);
        let outcome = paused(&mut self.engine, |engine| {
            if engine.resets() != resets {
                return Ok(Some("the guest was reset".to_owned()));
            }
            if !transaction::unchanged(engine, &action.writes)? {
                return Ok(Some("the guest changed the memory in question".to_owned()));
            }
            if let Some(busy) = check(engine)? {
                return Ok(Some(busy));
            }
            journal.committing()?;
            write_all(engine, &action.writes).map_err(|error| errors::not_written(journal, error))?;
            if let Err(error) = last(engine) {
                let undone = transaction::take_back(engine, &action.writes);
                return Err(errors::taken_back(journal, error.into(), undone));
            }
            Ok::<_, UpdateError>(None)
        });
        self.unsettled = true;
        let (result, time) = outcome?;
        times.paused(time);
        let written = matches!(result, Ok(None));
        if !written && !result.as_ref().is_err_and(UpdateError::is_stuck) {
            self.journal.forget_action()?;
        }
        self.unsettled = result.as_ref().is_err_and(UpdateError::is_stuck);
        result
    }
}

/// What the guest has written into its request so far.
fn answer(memory: &dyn ReadMemory, call: &Call) -> Result<Answer, EngineError> {
    let mut bytes = [0; REQUEST_SIZE];
    memory.read(Pa(call.request), &mut bytes)?;
    Ok(Answer::of(&bytes))
}

/// Bytes by address, in pieces that lie in one page each; runs begin at whole pages.
pub(super) fn pages(contents: &[(u64, Vec<u8>)]) -> impl Iterator<Item = (u64, &[u8])> {
    contents.iter().flat_map(|(at, bytes)| (*at..).step_by(PAGE).zip(bytes.chunks(PAGE)))
}

/// What commits may do besides: take away the object of an answered request.
pub(super) fn leaving<E: Engine>(
    engine: &E,
    context: &Object,
    call: &Call,
    plan: &mut plan::Plan,
) -> Result<(), EngineError> {
    let memory = plan::reclaim(engine, &plan.arena, &call.allocation)?;
    plan.writes.extend(memory.writes);
    plan.arena = memory.arena;
    plan.untouched.push(call.code.clone());
    plan.idle = Some((Pa(call.work_pa + u64::from(context.flags)), context.claimed));
    Ok(())
}

fn put(data: &mut [u8], at: u32, bytes: &[u8]) -> Result<(), SupportError> {
    let at = at as usize;
    let place = data.get_mut(at..at.saturating_add(bytes.len()));
    place
        .ok_or_else(|| SupportError::Object(format!("nothing at {:?}+{at:#x}", SectionKind::Data)))?
        .copy_from_slice(bytes);
    Ok(())
}

fn word(memory: &dyn ReadMemory, at: Pa) -> Result<u32, EngineError> {
    let mut word = [0; 4];
    memory.read(at, &mut word)?;
    Ok(u32::from_le_bytes(word))
}

/// What an answer means for the areas of the document.
fn take_over(
    memory: &dyn ReadMemory,
    document: &mut Document,
    context: &Context,
    call: &Call,
    answer: &Answer,
) -> Result<(), UpdateError> {
    let kernel = &context.kernel;
    let of_call = |area: &&mut Area| area.base == call.area.base;
    match (call.operation, answer.result) {
        (Operation::Allocate, 0) => {
            let image = kernel.live(kernel.symbol("_text")?).0..kernel.live(kernel.symbol("_end")?).0;
            let mut area = Area { base: answer.base, ..call.area.clone() };
            if !is_plausible(area.base, area.parts.size(), &image) {
                let detail = format!("{:#x} is not in its module area", area.base);
                return Err(GuestError::Damaged { what: "answer to a request for memory", detail }.into());
            }
            area.witness.page = kernel.translate(memory, Va(area.base), "memory that it gave")?.0;
            document.areas.push(area);
        }
        (Operation::Register, 0) => {
            if answer.module < KERNEL_HALF {
                let detail = format!("{:#x} is no address of the kernel", answer.module);
                return Err(GuestError::Damaged { what: "answer to a registration", detail }.into());
            }
            let name = Va(answer.module.wrapping_add(u64::from(context.object.module_name)));
            let name = kernel.translate(memory, name, "a module that it registered")?;
            for area in document.areas.iter_mut().filter(of_call) {
                (area.module, area.witness.name) = (answer.module, name.0);
            }
        }
        (Operation::Release, 0) => {
            document.areas.retain(|area| area.base != call.area.base);
            let parts = document.bundles.iter_mut().flat_map(|record| &mut record.parts);
            parts.for_each(|part| part.left.retain(|base| *base != call.area.base));
            let bundle = super::parts::bundle_of(&call.area.bundle);
            let removed = |record: &&mut Record| record.info.id == bundle && record.info.kept_pages != 0;
            for record in document.bundles.iter_mut().filter(removed) {
                record.info.kept_pages = record.info.kept_pages.saturating_sub(call.area.pages());
                if record.info.kept_pages == 0 {
                    record.info.reason = None;
                }
            }
        }
        // What was not released stays, and is not tried again by itself.
        (Operation::Release, _) => document.areas.iter_mut().filter(of_call).for_each(|area| area.kept = true),
        (Operation::Allocate | Operation::Register, _) => {}
    }
    Ok(())
}
