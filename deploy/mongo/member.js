// Makes a MongoDB node of the Docker stack a member of the replica set `rs0`, with the user that the service logs in as.
// Exits with 0 once it is a primary or secondary that lets the user in. Running it again finishes what was begun.

const NODES = ["mongo", "mongo2", "mongo3"];
const USER = "cryptoticker";
const { NODE, MONGO_PASSWORD } = process.env;

function connect(host) {
  return new Mongo(`mongodb://${host}:27017/?directConnection=true&serverSelectionTimeoutMS=1000`).getDB("admin");
}

// The replica set that another node is in, as that node tells it; null if none answers.
function knownSet() {
  for (const host of NODES.filter((name) => name !== NODE)) {
    try {
      const hello = connect(host).hello();
      if (hello.setName && hello.primary) return hello;
    } catch (error) {
      continue; // not started yet, or not in this stack
    }
  }
  return null;
}

function join(hello) {
  const host = `${NODE}:27017`;
  if (hello.hosts.includes(host)) return; // back without its data: the others will call it
  const primary = connect(hello.primary.split(":")[0]);
  primary.auth(USER, MONGO_PASSWORD);
  const config = primary.adminCommand({ replSetGetConfig: 1 }).config;
  config.members.push({ _id: Math.max(...config.members.map((member) => member._id)) + 1, host });
  config.version += 1;
  primary.adminCommand({ replSetReconfig: config });
}

function becomeMember(admin) {
  const set = knownSet();
  if (set) join(set);
  // Nobody else there: the first node begins. Without any user yet, MongoDB lets whoever is on its own machine do this.
  else if (NODE === NODES[0]) {
    admin.adminCommand({ replSetInitiate: { _id: "rs0", members: [{ _id: 0, host: `${NODE}:27017` }] } });
  }
}

function isLetIn(admin) {
  try {
    return Boolean(admin.auth(USER, MONGO_PASSWORD).ok);
  } catch (error) {
    if (error.codeName !== "AuthenticationFailed") throw error;
    return false;
  }
}

// The first user ends what MongoDB allows without one, so this can succeed only once.
function createUser(admin) {
  try {
    admin.createUser({ user: USER, pwd: MONGO_PASSWORD, roles: ["root"] });
  } catch (error) {
    print(`MONGO_PASSWORD is not the one that this MongoDB was made with (${error.codeName})`);
    quit(1);
  }
}

const here = connect("127.0.0.1");
if (here.hello().isreplicaset) becomeMember(here);
for (let wait = 0; wait < 50 && !here.hello().isWritablePrimary && !here.hello().secondary; wait++) sleep(100);
if (here.hello().isWritablePrimary && !isLetIn(here)) createUser(here);
const { isWritablePrimary, secondary } = here.hello();
quit((isWritablePrimary || secondary) && isLetIn(here) ? 0 : 1);
