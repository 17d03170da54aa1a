// Send actions with kafkajs 2, whose default partitioner is murmur2 (that of version 1 was another one).
const { randomUUID } = require('node:crypto')
const { Kafka, Partitioners, logLevel } = require('kafkajs')

const [bootstrap = 'localhost:29092', topic = 'headrace.actions.v1'] = process.argv.slice(2)

// One record: an action, or a list of one user's.
const record = (...actions) => ({
  key: String(actions[0].user),
  value: JSON.stringify(actions.length === 1 ? actions[0] : actions),
})

async function main() {
  const kafka = new Kafka({ brokers: bootstrap.split(','), logLevel: logLevel.ERROR })
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner })
  await producer.connect()
  const now = Date.now()
  await producer.send({
    topic,
    acks: -1,
    messages: [
      record({ user: 'u17', item: 'i42', action: 'click', timestamp: now }),
      record({ user: 5, item: 42, action: ['click', 'like'], timestamp: now, value: 4.5, id: randomUUID() }),
      record(
        { user: 'zoë', item: 'i42', action: 'impression', timestamp: now },
        { user: 'zoë', item: 'i43', action: 'impression', timestamp: now + 1 },
      ),
    ],
  })
  await producer.disconnect()
}

main().catch((error) => {
  console.error(error)
  process.exitCode = 1
})
