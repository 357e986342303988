//! `POST /v1/admin/dead-letters/redrive` and `…/discard`, and how far they are: `GET …/tasks`.
//!
//! A request only writes down what is to be done, as a task of the store; [`super::redriver`] does it, in this process or
//! in another.

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use eshaar_model::{BusinessId, MessageId, Timestamp};
use eshaar_service::{Json, Problem};
use eshaar_store::{DeadLetterId, LetterPlace, LetterQuery, LetterState, Task};
use eshaar_topics::redrive::MOST_REDRIVES;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::Operator;
use crate::query::Parameters;
use crate::{App, body, openapi, problems};

/// Kind of the tasks.
pub(crate) const TASKS: &str = "dead_letters";
/// Most letters of a request that names them.
const MOST_IDS: usize = 100;
/// Most tasks of a list.
const LISTED: usize = 100;
/// Longest name of a stage or code, in characters.
const NAME_CHARS: usize = 64;

/// What is to be done with letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    Redrive,
    Discard,
}

impl Action {
    /// In the audit log: asked for.
    const fn asked(self) -> &'static str {
        match self {
            Self::Redrive => "dead_letters.redrive",
            Self::Discard => "dead_letters.discard",
        }
    }

    /// In the audit log: done.
    pub(crate) const fn done(self) -> &'static str {
        match self {
            Self::Redrive => "dead_letters.redriven",
            Self::Discard => "dead_letters.discarded",
        }
    }

    /// What becomes of a letter.
    pub(crate) const fn state(self) -> LetterState {
        match self {
            Self::Redrive => LetterState::Redriven,
            Self::Discard => LetterState::Discarded,
        }
    }
}

/// Which letters are left to be seen to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Left {
    /// These.
    Ids(Vec<String>),
    /// The open ones that a filter names, behind a place.
    Filter { filter: Filter, behind: Option<(Timestamp, String)> },
}

/// Letters by what they have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    stage: Option<String>,
    code: Option<String>,
    business: Option<BusinessId>,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Filter {
    /// The next open letters behind a place.
    pub(crate) fn query(&self, behind: Option<LetterPlace>, limit: usize) -> LetterQuery {
        LetterQuery {
            stage: self.stage.clone(),
            code: self.code.clone(),
            business: self.business.clone(),
            state: Some(LetterState::Open),
            from: self.from,
            until: self.until,
            before: behind,
            limit,
        }
    }
}

/// A task as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) action: Action,
    pub(crate) by: String,
    pub(crate) correlation: String,
    pub(crate) left: Left,
    /// Letters redriven or discarded.
    pub(crate) done: u64,
    /// Letters refused: redriven too often.
    pub(crate) refused: u64,
    /// Letters that someone else had seen to, or that are gone.
    pub(crate) skipped: u64,
}

/// A redrive or discard, and how far it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskView {
    #[schema(format = "uuid")]
    id: String,
    action: Action,
    /// Who asked for it, as the audit log names them.
    by: String,
    #[schema(value_type = String, format = DateTime)]
    requested_at: Timestamp,
    finished: bool,
    /// Letters redriven or discarded so far.
    done: u64,
    /// Letters refused so far: redriven too often.
    refused: u64,
    /// Letters passed over so far: someone else had seen to them, or they are gone.
    skipped: u64,
}

impl TaskView {
    fn of(task: &Task) -> Option<Self> {
        let work: Work = serde_json::from_slice(&task.progress).ok()?;
        Some(Self {
            id: task.id.clone(),
            action: work.action,
            by: work.by,
            requested_at: task.made_at,
            finished: task.finished,
            done: work.done,
            refused: work.refused,
            skipped: work.skipped,
        })
    }
}

/// What was asked for, and what of it cannot be done.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskAnswer {
    task: TaskView,
    /// Of the letters that were named, those that nothing is done with.
    refused: Vec<RefusedLetter>,
}

/// A letter that nothing is done with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RefusedLetter {
    #[schema(format = "uuid")]
    id: String,
    /// `dead_letter_not_found`, `dead_letter_settled` or `redrive_limit`.
    code: &'static str,
    detail: String,
}

/// The tasks of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TaskList {
    tasks: Vec<TaskView>,
}

/// Redrive dead letters
///
/// Sends records again to the topic that they were read from, some a second, in the background. Letters are named by
/// `ids`, or by `filter`, which means all that are open when it is asked for. A record that was redriven three times is
/// refused.
#[utoipa::path(
    post, path = "/v1/admin/dead-letters/redrive", tag = "operators", operation_id = "redrive_dead_letters",
    request_body = openapi::DeadLetterSelection,
    responses((status = 202, description = "It is being done", body = TaskAnswer))
)]
pub(crate) async fn redrive(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<TaskAnswer>), Problem> {
    ask(&app, &operator, Action::Redrive, &body::json(&headers, body, &app.options).await?).await
}

/// Discard dead letters
///
/// Gives records up for good, in the background. Letters are named as for a redrive.
#[utoipa::path(
    post, path = "/v1/admin/dead-letters/discard", tag = "operators", operation_id = "discard_dead_letters",
    request_body = openapi::DeadLetterSelection,
    responses((status = 202, description = "It is being done", body = TaskAnswer))
)]
pub(crate) async fn discard(
    State(app): State<App>,
    operator: Operator,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<TaskAnswer>), Problem> {
    ask(&app, &operator, Action::Discard, &body::json(&headers, body, &app.options).await?).await
}

async fn ask(
    app: &App,
    operator: &Operator,
    action: Action,
    body: &[u8],
) -> Result<(StatusCode, Json<TaskAnswer>), Problem> {
    let now = app.deps.clock.now();
    let (left, refused, detail) = match Selection::parse(body)? {
        Selection::Ids(ids) => {
            let (ids, refused) = sort_out(app, action, ids).await?;
            let detail = json!({"letters": ids.len(), "ids": ids});
            (Left::Ids(ids), refused, detail)
        }
        Selection::Filter(mut filter) => {
            // What dies after it was asked for is another's to decide.
            filter.until = Some(filter.until.map_or(now, |until| until.min(now)));
            let detail = json!({"filter": filter});
            (Left::Filter { filter, behind: None }, Vec::new(), detail)
        }
    };
    let id = MessageId::new(now).to_string();
    operator.record(app, action.asked(), id.clone(), detail).await?;
    let (by, correlation) = (operator.name.clone(), operator.correlation().to_owned());
    let work = Work { action, by, correlation, left, done: 0, refused: 0, skipped: 0 };
    let progress = serde_json::to_vec(&work).map_err(|_| problems::internal())?.into();
    let task = Task { kind: TASKS.to_owned(), id, made_at: now, progress, finished: false };
    let view = TaskView::of(&task).ok_or_else(problems::internal)?;
    app.deps.store.tasks.make(task).await.map_err(|error| problems::store(&error))?;
    Ok((StatusCode::ACCEPTED, Json(TaskAnswer { task: view, refused })))
}

/// The letters that can be seen to, and why the others cannot; a problem where none can.
async fn sort_out(
    app: &App,
    action: Action,
    ids: Vec<DeadLetterId>,
) -> Result<(Vec<String>, Vec<RefusedLetter>), Problem> {
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    let mut first = None;
    for id in ids {
        let found = app.deps.store.dead_letters.get(id).await.map_err(|error| problems::store(&error))?;
        let problem = match found {
            None => problems::dead_letter_not_found(),
            Some((letter, _)) if letter.settled.is_some() => problems::dead_letter_settled(letter.state()),
            Some((letter, _)) if action == Action::Redrive && letter.head.redrives >= MOST_REDRIVES => {
                problems::redrive_limit(MOST_REDRIVES)
            }
            Some(_) => {
                taken.push(id.to_string());
                continue;
            }
        };
        refused.push(RefusedLetter { id: id.to_string(), code: problem.code, detail: problem.detail.clone() });
        first.get_or_insert(problem);
    }
    match first {
        Some(problem) if taken.is_empty() => Err(problem),
        _ => Ok((taken, refused)),
    }
}

/// Which letters a request is about.
enum Selection {
    Ids(Vec<DeadLetterId>),
    Filter(Filter),
}

/// A request's body.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SelectionBody {
    ids: Option<Vec<String>>,
    filter: Option<FilterBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterBody {
    stage: Option<String>,
    code: Option<String>,
    business: Option<String>,
    from: Option<String>,
    until: Option<String>,
}

impl Selection {
    fn parse(body: &[u8]) -> Result<Self, Problem> {
        let body: SelectionBody = serde_json::from_slice(body).map_err(|error| {
            // The text of a data error may hold a part of the data.
            if error.is_data() { problems::letter_selection() } else { problems::json_syntax(&error) }
        })?;
        match (body.ids, body.filter) {
            (Some(ids), None) => Self::of_ids(&ids),
            (None, Some(filter)) => Ok(Self::Filter(filter.checked()?)),
            _ => Err(problems::letter_selection()),
        }
    }

    fn of_ids(ids: &[String]) -> Result<Self, Problem> {
        if ids.is_empty() || ids.len() > MOST_IDS {
            let detail = format!("must name 1 to {MOST_IDS} dead letters, has {}", ids.len());
            return Err(Problem::field("ids", "wrong_number", detail));
        }
        let parsed: Result<Vec<DeadLetterId>, _> = ids.iter().map(|id| id.parse()).collect();
        let mut ids = parsed.map_err(|error: eshaar_store::dead_letters::DeadLetterIdError| {
            Problem::field("ids", "invalid_id", error.to_string())
        })?;
        ids.sort_unstable();
        ids.dedup();
        Ok(Self::Ids(ids))
    }
}

impl FilterBody {
    fn checked(self) -> Result<Filter, Problem> {
        for (field, name) in [("filter.stage", &self.stage), ("filter.code", &self.code)] {
            if name.as_ref().is_some_and(|name| name.is_empty() || name.chars().count() > NAME_CHARS) {
                return Err(Problem::field(field, "invalid_filter", format!("must have 1 to {NAME_CHARS} characters")));
            }
        }
        let time = |field: &str, text: Option<String>| {
            let parsed = text.map(|text| text.parse::<Timestamp>()).transpose();
            parsed.map_err(|error| Problem::field(field, "invalid_filter", error.to_string()))
        };
        let business = self.business.map(|business| business.parse::<BusinessId>()).transpose();
        Ok(Filter {
            stage: self.stage,
            code: self.code,
            business: business
                .map_err(|error| Problem::field("filter.business", "invalid_filter", error.to_string()))?,
            from: time("filter.from", self.from)?,
            until: time("filter.until", self.until)?,
        })
    }
}

/// List redrives and discards
///
/// The last 100, newest first.
#[utoipa::path(
    get, path = "/v1/admin/dead-letters/tasks", tag = "operators", operation_id = "list_dead_letter_tasks",
    responses((status = 200, description = "Redrives and discards", body = TaskList))
)]
pub(crate) async fn list(
    State(app): State<App>,
    _: Operator,
    RawQuery(query): RawQuery,
) -> Result<Json<TaskList>, Problem> {
    Parameters::parse(query.as_deref(), &[])?;
    let tasks = app.deps.store.tasks.list(TASKS, LISTED).await.map_err(|error| problems::store(&error))?;
    Ok(Json(TaskList { tasks: tasks.iter().filter_map(TaskView::of).collect() }))
}

/// See how far a redrive or discard is
///
#[utoipa::path(
    get, path = "/v1/admin/dead-letters/tasks/{id}", tag = "operators", operation_id = "get_dead_letter_task",
    params(openapi::TaskIdPath),
    responses((status = 200, description = "The task", body = TaskView))
)]
pub(crate) async fn get(
    State(app): State<App>,
    _: Operator,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<TaskView>, Problem> {
    Parameters::parse(query.as_deref(), &[])?;
    let id: MessageId = id.parse().map_err(|_| problems::task_not_found())?;
    let task = app.deps.store.tasks.get(TASKS, &id.to_string()).await.map_err(|error| problems::store(&error))?;
    task.as_ref().and_then(TaskView::of).map(Json).ok_or_else(problems::task_not_found)
}
