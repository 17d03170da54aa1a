// Kafka's own client, driven line by line: send PARTITION KEY VALUE ("-": null), clock MILLISECONDS (how far it is ahead),
// flush, and with a transactional.id begin, commit and abort. Each line but send is answered by "done" once the broker has
// all of it. Arguments: the broker, the topic, and settings of the producer, NAME=VALUE.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

public class JavaProducer {
    private static String given(String word) {
        return word.equals("-") ? null : word;
    }

    public static void main(String[] arguments) throws Exception {
        Map<String, Object> settings = new HashMap<>(Map.of("bootstrap.servers", arguments[0]));
        for (int number = 2; number < arguments.length; number++) {
            String[] setting = arguments[number].split("=", 2);
            settings.put(setting[0], setting[1]);
        }
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        long aheadMs = 0;
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer());
                var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8))) {
            if (settings.containsKey("transactional.id")) {
                producer.initTransactions();
            }
            System.out.println("done");
            for (String line; (line = lines.readLine()) != null; ) {
                String[] words = line.split(" ", 4);
                switch (words[0]) {
                    case "send" -> {
                        var record = new ProducerRecord<>(arguments[1], Integer.valueOf(words[1]),
                                System.currentTimeMillis() + aheadMs, given(words[2]), given(words[3]));
                        record.headers().add("traceparent", new byte[] {0, (byte) 0xff});
                        sent.add(producer.send(record));
                        continue;
                    }
                    case "clock" -> aheadMs = Long.parseLong(words[1]);
                    case "begin" -> producer.beginTransaction();
                    case "commit" -> producer.commitTransaction();
                    case "abort" -> producer.abortTransaction();
                    case "flush" -> producer.flush();
                    default -> throw new IllegalArgumentException(line);
                }
                if (!words[0].equals("abort")) {
                    for (Future<RecordMetadata> each : sent) {
                        each.get();
                    }
                }
                sent.clear();
                System.out.println("done");
            }
        }
    }
}
