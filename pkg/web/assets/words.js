// Every word of the page, in English and Chinese. What comes from agents and registries (reasons, names, digests) is shown as it came; what causes.js knows is said in the language of the page besides.
// A test holds that both languages have every key, and that every key that is used is here.

export const words = {
  en: {
    "title": "fanout", "skip": "Skip to the page", "nav": "Pages", "nav.tree": "Tree", "nav.images": "Images", "nav.rollouts": "Rollouts", "nav.conflicts": "Conflicts", "nav.events": "Events",
    "language": "中文", "language.label": "Switch the language to Chinese", "theme": "Theme", "theme.auto": "Theme: as the system", "theme.light": "Theme: light", "theme.dark": "Theme: dark",
    "served": "seen from {0}", "live": "live", "live.label": "Live: changes show as they happen", "stale": "no contact for {0}", "connecting": "connecting…",
    "trouble": "The picture is old: {0}", "trouble.stale": "The agent does not answer. What is shown is {0} old; the page tries again by itself.",
    "noroot": "Only what this agent knows itself is shown: {0}.", "cutoff": "{0} is attached to no parent since {1}. What headquarters has published since is not known here.",
    "cut": "This agent answers for {0} and what is below. What is above is not seen from here.",
   
    "state.synced": "synced", "state.syncing": "syncing", "state.behind": "behind", "state.degraded": "degraded", "state.conflict": "conflict", "state.unreachable": "unreachable",
    "state.witness": "witness", "state.unknown": "unknown", "state.delivered": "delivered", "state.delivering": "delivering", "state.waiting": "waiting", "state.failed": "failed",
    "state.held": "held", "state.drifted": "drifted", "state.accepted": "accepted", "state.unsubscribed": "unsubscribed", "state.pending": "pending", "state.staging": "staging",
    "state.staged": "staged", "state.running": "running", "state.soaking": "soaking", "state.checking": "checking", "state.awaiting-approval": "awaiting approval", "state.awaiting-window": "awaiting window",
    "state.paused": "paused", "state.succeeded": "succeeded", "state.aborted": "aborted", "state.rolling-back": "rolling back", "state.rolled-back": "rolled back", "state.skipped": "skipped",
    "state.offline": "offline", "state.passed": "passed",
    "tree.title": "Tree", "tree.sites": "{0|site|sites} in {1|group|groups}", "tree.search": "Find a group or site", "tree.search.none": "Nothing is called that.", "tree.search.found": "{0} found",
    "tree.fold": "Fold healthy", "tree.unfold": "Unfold all", "tree.in": "Zoom in", "tree.out": "Zoom out", "tree.fit": "Fit", "tree.zoom": "Zoom", "tree.picture": "Groups of the fabric, parents before children",
    "tree.keys": "Arrow keys walk the tree, Enter opens a group, Space folds it, / searches, + and − zoom.",
    "tree.worst": "Needs attention", "tree.filter": "Show only {0}: {1|site|sites}", "tree.empty": "Nothing is known of the fabric yet.",
    "tree.below": "{0|group|groups} below", "tree.node": "{0}, {1}, {2|site|sites}", "tree.nodebelow": "worst below: {0}", "tree.above": "not seen from here",
    "root": "root", "carrier": "carrier", "left": "{0} left", "rate": "{0}/s", "eta": "about {0}", "lag": "{0} behind", "lag.label": "Lag", "lag.none": "none", "lag.value": "{0|revision|revisions}, {1}", "lag.revisions": "{0|revision|revisions}", "frozen": "frozen",
    "group.title": "Group {0}", "group": "Group", "group.parent": "Attached to", "group.parent.was": "Was attached to", "group.root": "Root", "group.term": "term {0}", "group.carrier": "Carrier", "group.revision": "Revision", "group.labels": "Labels",
    "group.contact": "Last contact", "group.freeze": "Freeze", "group.freeze.value": "until {0}, by {1}: {2}", "group.members": "Members", "group.children": "Groups below", "group.none": "No group of that name is known here.", "group.hq": "nothing: it is headquarters",
    "group.answers": "Its root {0} answers; a group shows the worst state of its members.", "group.memberaway": "a member is unreachable",
    "site": "Site", "site.title": "Site {0}", "site.state": "State", "site.registry": "Registry", "site.version": "Agent", "site.bytes": "Left to fetch", "site.rate": "Rate now", "site.eta": "Estimated", "site.refs": "Refs to do",
    "site.contact": "Last contact", "site.revision": "Revision", "site.roles": "Role", "site.member": "member", "site.none": "No site of that name is known here.", "site.pending": "Not as it should be here", "site.pending.none": "Everything in scope is here.", "site.pending.unheard": "It is not heard of now. When it was last, it had everything up to its revision above.",
    "site.pending.more": "{0} more are not listed.", "site.pending.unknown": "What is pending there is not known: {0}", "site.noregistry": "none: a witness holds the catalog and votes",
    "site.disk": "Disk", "site.registrydisk": "Registry's disk", "site.disk.value": "{0} of {1} left", "site.certificate": "Certificate", "site.certificate.value": "ends {0}", "ref.mend": "To do: {0}", "away.mend": "start the agent of {0}, or mend the network to it", "away.mend.link": "start the agent of {0}, or mend the network from {0} to {1}",
    "ref": "Ref", "ref.title": "Where is {0}", "ref.digest": "Digest", "ref.revision": "revision {0}", "ref.delivered": "{0} of {1|site|sites}", "ref.path": "Its way", "ref.path.picture": "The way of {0} from headquarters to each site", "ref.matrix": "Every site", "ref.list": "Not there yet", "ref.all": "Sites, worst first",
    "ref.deleted": "It is deleted: sites take the tag away.", "ref.shows": "Shows", "ref.since": "Since", "ref.next": "Next attempt", "ref.attempts": "{0|attempt|attempts}", "ref.why": "Why", "ref.left": "Left", "ref.none": "{0} is not in the catalog.",
    "ref.cell": "{0}: {1}", "ref.allthere": "It is everywhere it should be.", "ref.nothing": "nothing", "ref.more": "Show all {0}",
    "why.title": "Why: {0} at {1}", "why.link.label": "the whole way", "why.way": "The way from the top", "why.behind": "revision {0} of {1}", "why.root": "root {0}", "why.carrier": "carrier {0}", "why.detached": "attached to no parent since {0}", "why.parent": "attached to {0}",
    "why.reported": "as reported {0}", "why.link": "link: {0}", "why.away": "it does not answer: {0}", "why.receipt": "delivered {0}: {1} from {2}", "why.here": "what was there", "why.blob": "{0} of {1} from {2}", "why.nothing": "nothing comes", "why.asked": "asked for just now",
    "images.title": "Images", "images.search": "Find a repository, tag or digest", "images.all": "Also signatures and deleted", "images.published": "Published", "images.by": "By", "images.size": "Size", "images.revision": "Revision", "images.none": "Nothing is published under that name.", "images.empty": "Nothing is published yet.",
    "images.more": "Only the first {0} are shown. Search for more.", "images.referrers": "{0|referrer|referrers}", "images.deleted": "deleted", "images.at": "at {0}",
    "rollouts.title": "Rollouts", "rollouts.none": "No rollout is kept. One begins with: fanoutctl promote REF…", "rollouts.wave": "wave {0} of {1}", "rollouts.over": "all {0} waves", "rollouts.started": "Started", "rollouts.ended": "Ended", "rollouts.by": "by {0}", "rollouts.plan": "plan {0}", "rollout.plan": "Plan", "rollouts.hq": "Rollouts are known at headquarters only.",
    "rollout.title": "Rollout {0}", "rollout.moves": "Moves", "rollout.from": "from {0}", "rollout.waves": "Waves", "rollout.soak.left": "{0} left of {1}", "rollout.soak.then": "then soaks {0}", "rollout.soak.done": "soaked {0}",
    "rollout.groups": "{0} of {1|group|groups}", "rollout.gate.before": "before it", "rollout.gate.after": "after it", "rollout.gate.approval": "approval", "rollout.gate.check": "check", "rollout.window.open": "the window is open", "rollout.window.next": "the window opens {0}", "rollout.window.never": "the window never opens",
    "rollout.limits": "{0} at once · {1|failure|failures} allowed · then {2} · offline: {3}", "rollout.deadline": "deadline {0}", "then.pause": "pause", "then.abort": "abort", "then.rollback": "rollback", "offline.wait": "wait", "offline.skip": "skip", "offline.fail": "fail", "rollout.history": "History", "rollout.receipt": "Sites", "rollout.none": "No rollout {0} is kept.", "rollout.settled": "settled: it can't be rolled back any more", "rollout.superseded": "superseded by {0}",
    "rollout.needs": "It waits for a person: {0}", "rollout.opened": "opened {0}", "rollout.now": "now",
    "conflicts.title": "Conflicts", "conflicts.none": "No conflict, and no deletion waits for a word.", "conflicts.lost": "lost", "conflicts.won": "won", "conflicts.pushed": "pushed {0}", "conflicts.settle": "Settle it with", "conflicts.hq": "Conflicts are known at headquarters only.", "conflicts.list": "Pushes that lost",
    "deletions.list": "Deletions", "deletions.gone": "gone at", "deletions.seen": "seen", "deletions.state.held": "held until a person's word", "deletions.state.noted": "travels in a moment", "deletions.state.restoring": "is being put back", "deletions.allow": "Delete it everywhere, or put it back, with",
    "events.title": "Events", "events.none": "Nothing has happened yet.", "events.of": "What happened at {0}, newest first. Each agent keeps its own events.", "events.search": "Find in events", "events.warnings": "Warnings only", "events.count": "{0|time|times} since {1}", "events.nomatch": "No event is like that.",
    "time": "Time", "reason": "Reason", "message": "Message", "never": "never", "just-now": "just now", "ago": "{0} ago", "loading": "Asking…", "span.s": "{0} s", "span.m": "{0} min", "span.h": "{0} h", "span.d": "{0} d", "span.ms": "{0} min {1} s", "span.hm": "{0} h {1} min", "span.dh": "{0} d {1} h", "notfound": "There is no such page.", "back": "Back to the tree", "none": "none",
  },
  zh: {
    "title": "fanout", "skip": "跳到正文", "nav": "页面", "nav.tree": "树", "nav.images": "镜像", "nav.rollouts": "分批发布", "nav.conflicts": "冲突", "nav.events": "事件",
    "language": "English", "language.label": "切换为英文", "theme": "主题", "theme.auto": "主题：跟随系统", "theme.light": "主题：浅色", "theme.dark": "主题：深色",
    "served": "由 {0} 提供", "live": "实时", "live.label": "实时：变化即刻显示", "stale": "已失去联系 {0}", "connecting": "连接中…",
    "trouble": "画面已旧：{0}", "trouble.stale": "代理没有应答。所示内容为 {0} 前；页面会自动重试。",
    "noroot": "仅显示本代理自身所知：{0}。", "cutoff": "{0} 自 {1} 起未连接到任何上级。此后总部发布的内容这里尚不知道。",
    "cut": "本代理负责 {0} 及其下级。从这里看不到上级。",
   
    "state.synced": "已同步", "state.syncing": "同步中", "state.behind": "落后", "state.degraded": "异常", "state.conflict": "冲突", "state.unreachable": "失联",
    "state.witness": "见证者", "state.unknown": "未知", "state.delivered": "已送达", "state.delivering": "传送中", "state.waiting": "等待", "state.failed": "失败",
    "state.held": "暂缓", "state.drifted": "有偏离", "state.accepted": "已接受的差异", "state.unsubscribed": "未订阅", "state.pending": "未开始", "state.staging": "预置中",
    "state.staged": "已预置", "state.running": "进行中", "state.soaking": "观察中", "state.checking": "检查中", "state.awaiting-approval": "等待批准", "state.awaiting-window": "等待窗口",
    "state.paused": "已暂停", "state.succeeded": "成功", "state.aborted": "已中止", "state.rolling-back": "回退中", "state.rolled-back": "已回退", "state.skipped": "已跳过",
    "state.offline": "离线", "state.passed": "通过",
    "tree.title": "树", "tree.sites": "{1} 个组，{0} 个站点", "tree.search": "查找组或站点", "tree.search.none": "没有这个名称。", "tree.search.found": "找到 {0} 个",
    "tree.fold": "折叠正常的", "tree.unfold": "全部展开", "tree.in": "放大", "tree.out": "缩小", "tree.fit": "适合窗口", "tree.zoom": "缩放", "tree.picture": "分发网络中的组，上级在前",
    "tree.keys": "方向键在树中移动，回车打开组，空格折叠，/ 查找，+ 和 − 缩放。",
    "tree.worst": "需要关注", "tree.filter": "只看{0}：{1} 个站点", "tree.empty": "目前还不了解分发网络的情况。",
    "tree.below": "下级 {0} 个组", "tree.node": "{0}，{1}，{2} 个站点", "tree.nodebelow": "下级最差：{0}", "tree.above": "从这里看不到",
    "root": "根", "carrier": "承运", "left": "剩余 {0}", "rate": "{0}/秒", "eta": "约 {0}", "lag": "落后 {0}", "lag.label": "滞后", "lag.none": "无", "lag.value": "{0} 个修订，{1}", "lag.revisions": "{0} 个修订", "frozen": "已冻结",
    "group.title": "组 {0}", "group": "组", "group.parent": "上级", "group.parent.was": "此前的上级", "group.root": "根", "group.term": "任期 {0}", "group.carrier": "承运者", "group.revision": "修订", "group.labels": "标签",
    "group.contact": "最近联系", "group.freeze": "冻结", "group.freeze.value": "至 {0}，由 {1}：{2}", "group.members": "成员", "group.children": "下级组", "group.none": "这里不知道这个组。", "group.hq": "无：这是总部",
    "group.answers": "其根 {0} 有应答；组显示其成员中最差的状态。", "group.memberaway": "有成员失联",
    "site": "站点", "site.title": "站点 {0}", "site.state": "状态", "site.registry": "镜像仓库", "site.version": "代理", "site.bytes": "待取", "site.rate": "当前速率", "site.eta": "预计", "site.refs": "待办引用",
    "site.contact": "最近联系", "site.revision": "修订", "site.roles": "角色", "site.member": "成员", "site.none": "这里不知道这个站点。", "site.pending": "此处尚不符合要求的引用", "site.pending.none": "范围内的内容都在这里。", "site.pending.unheard": "目前没有它的消息。最近一次联系时，上述修订以内的内容都在那里。",
    "site.pending.more": "另有 {0} 个未列出。", "site.pending.unknown": "不知道那里的待办：{0}", "site.noregistry": "无：见证者只保存目录并投票",
    "site.disk": "磁盘", "site.registrydisk": "仓库磁盘", "site.disk.value": "剩余 {0}，共 {1}", "site.certificate": "证书", "site.certificate.value": "{0} 到期", "ref.mend": "处理办法：{0}", "away.mend": "启动 {0} 的代理，或修复到它的网络", "away.mend.link": "启动 {0} 的代理，或修复从 {0} 到 {1} 的网络",
    "ref": "引用", "ref.title": "{0} 在哪里", "ref.digest": "摘要", "ref.revision": "修订 {0}", "ref.delivered": "{1} 个站点中的 {0} 个", "ref.path": "途径", "ref.path.picture": "{0} 从总部到各站点的途径", "ref.matrix": "所有站点", "ref.list": "尚未到达", "ref.all": "站点，最差在前",
    "ref.deleted": "它已被删除：各站点会移除该标签。", "ref.shows": "现为", "ref.since": "始于", "ref.next": "下次尝试", "ref.attempts": "已尝试 {0} 次", "ref.why": "原因", "ref.left": "剩余", "ref.none": "{0} 不在目录中。",
    "ref.cell": "{0}：{1}", "ref.allthere": "它已在所有应在之处。", "ref.nothing": "无", "ref.more": "显示全部 {0} 个",
    "why.title": "原因：{0} 在 {1}", "why.link.label": "完整路径", "why.way": "自上而下的路径", "why.behind": "修订 {0}，应为 {1}", "why.root": "根 {0}", "why.carrier": "承运者 {0}", "why.detached": "自 {0} 起没有上级", "why.parent": "上级 {0}",
    "why.reported": "为{0}所报", "why.link": "链路：{0}", "why.away": "没有应答：{0}", "why.receipt": "{0} 送达：{1}，来自 {2}", "why.here": "本地已有", "why.blob": "{1} 中的 {0}，来自 {2}", "why.nothing": "没有数据到来", "why.asked": "刚刚请求",
    "images.title": "镜像", "images.search": "查找仓库、标签或摘要", "images.all": "包括签名和已删除的", "images.published": "发布时间", "images.by": "发布者", "images.size": "大小", "images.revision": "修订", "images.none": "没有以此名称发布的内容。", "images.empty": "尚未发布任何内容。",
    "images.more": "只显示前 {0} 个。请用查找缩小范围。", "images.referrers": "{0} 个附属物", "images.deleted": "已删除", "images.at": "于 {0}",
    "rollouts.title": "分批发布", "rollouts.none": "没有保留的分批发布记录。用以下命令开始：fanoutctl promote REF…", "rollouts.wave": "第 {0} 波，共 {1} 波", "rollouts.over": "全部 {0} 波", "rollouts.started": "开始", "rollouts.ended": "结束", "rollouts.by": "由 {0}", "rollouts.plan": "计划 {0}", "rollout.plan": "计划", "rollouts.hq": "只有总部知道分批发布的情况。",
    "rollout.title": "分批发布 {0}", "rollout.moves": "变更", "rollout.from": "来自 {0}", "rollout.waves": "波次", "rollout.soak.left": "剩余 {0}，共 {1}", "rollout.soak.then": "之后观察 {0}", "rollout.soak.done": "已观察 {0}",
    "rollout.groups": "{1} 个组中的 {0} 个", "rollout.gate.before": "之前", "rollout.gate.after": "之后", "rollout.gate.approval": "批准", "rollout.gate.check": "检查", "rollout.window.open": "窗口已打开", "rollout.window.next": "窗口于 {0} 打开", "rollout.window.never": "窗口永不打开",
    "rollout.limits": "同时 {0} 个 · 允许失败 {1} 个 · 之后 {2} · 离线：{3}", "rollout.deadline": "期限 {0}", "then.pause": "暂停", "then.abort": "中止", "then.rollback": "回退", "offline.wait": "等待", "offline.skip": "跳过", "offline.fail": "视为失败", "rollout.history": "经过", "rollout.receipt": "站点", "rollout.none": "没有保留分批发布 {0} 的记录。", "rollout.settled": "已定案：不能再回退", "rollout.superseded": "被 {0} 取代",
    "rollout.needs": "等待人工：{0}", "rollout.opened": "开始于 {0}", "rollout.now": "现在",
    "conflicts.title": "冲突", "conflicts.none": "没有冲突，也没有等待裁定的删除。", "conflicts.lost": "落败", "conflicts.won": "胜出", "conflicts.pushed": "推送于 {0}", "conflicts.settle": "裁定命令", "conflicts.hq": "只有总部知道冲突的情况。", "conflicts.list": "落败的推送",
    "deletions.list": "删除", "deletions.gone": "消失于", "deletions.seen": "发现于", "deletions.state.held": "等待人工裁定", "deletions.state.noted": "片刻后传播", "deletions.state.restoring": "正在恢复", "deletions.allow": "全部删除或恢复的命令",
    "events.title": "事件", "events.none": "还没有发生任何事。", "events.of": "{0} 处发生的事，最新在前。每个代理保留自己的事件。", "events.search": "在事件中查找", "events.warnings": "只看警告", "events.count": "自 {1} 起 {0} 次", "events.nomatch": "没有这样的事件。",
    "time": "时间", "reason": "类别", "message": "内容", "never": "从未", "just-now": "刚刚", "ago": "{0}前", "loading": "查询中…", "span.s": "{0} 秒", "span.m": "{0} 分", "span.h": "{0} 小时", "span.d": "{0} 天", "span.ms": "{0} 分 {1} 秒", "span.hm": "{0} 小时 {1} 分", "span.dh": "{0} 天 {1} 小时", "notfound": "没有这个页面。", "back": "回到树", "none": "无",
  },
};

let now = "en";

export const language = () => now;
export function speak(lang) { now = words[lang] ? lang : "en"; }

// t is the word for a key, with what belongs in its places; {0|site|sites} is a number with its noun. A key that is missing shows itself, which a test looks for.
export function t(key, ...args) {
  const word = words[now][key] ?? words.en[key] ?? key;
  return args.length === 0 ? word : word.replace(/\{(\d)(?:\|(.*?)\|(.*?))?\}/g, (_, i, one, many) => {
    const arg = String(args[i] ?? "");
    return one === undefined ? arg : arg + " " + (arg === "1" ? one : many);
  });
}

// stateName is the word for a state; one that is new here shows as it came.
export const stateName = (state) => words[now]["state." + state] ?? state;
