// Send actions with Kafka's own client, whose default partitioner is murmur2. Java 17 or newer runs this file as it is.
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

public class ActionProducer {
    public static void main(String[] arguments) throws Exception {
        String bootstrap = arguments.length > 0 ? arguments[0] : "localhost:29092";
        String topic = arguments.length > 1 ? arguments[1] : "headrace.actions.v1";
        Map<String, Object> settings = Map.of("bootstrap.servers", bootstrap, "acks", "all");
        long now = System.currentTimeMillis();
        // Whatever writes JSON in your project does it here.
        Map<String, String> valueOfUser = Map.of(
                "u17", """
                {"user": "u17", "item": "i42", "action": "click", "timestamp": %d}""".formatted(now),
                "5", """
                {"user": 5, "item": 42, "action": ["click", "like"], "timestamp": %d, "value": 4.5, "id": "%s"}"""
                        .formatted(now, UUID.randomUUID()),
                "zo\u00eb", """
                [{"user": "zo\u00eb", "item": "i42", "action": "impression", "timestamp": %d},
                 {"user": "zo\u00eb", "item": "i43", "action": "impression", "timestamp": %d}]""".formatted(now, now + 1));
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            valueOfUser.forEach((user, value) -> sent.add(producer.send(new ProducerRecord<>(topic, user, value))));
            for (Future<RecordMetadata> each : sent) {
                each.get();
            }
        }
    }
}
