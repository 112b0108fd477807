import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Kafka's own client, for test_kafka_compatibility.py.
 *
 * <pre>
 * KafkaClient read ADDRESS TOPIC               writes all that is in the topic to standard output
 * KafkaClient write ADDRESS TOPIC COMPRESSION  writes what is on standard input, then where it went to standard output
 * </pre>
 *
 * A line is a record: partition, milliseconds, key, value, headers as NAME=VALUE, with spaces between. Bytes and names
 * are in hexadecimal digits, "null" is null, "any" the partition that the client chooses.
 */
public class KafkaClient {
    private static final HexFormat HEX = HexFormat.of();

    public static void main(String[] arguments) throws Exception {
        String address = arguments[1], topic = arguments[2];
        if (arguments[0].equals("read")) read(address, topic);
        else write(address, topic, arguments[3]);
    }

    private static void read(String address, String topic) {
        Map<String, Object> settings = Map.of("bootstrap.servers", address, "isolation.level", "read_committed");
        var bytes = new ByteArrayDeserializer();
        try (var consumer = new KafkaConsumer<>(settings, bytes, bytes)) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                .map(info -> new TopicPartition(topic, info.partition())).toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            var ends = consumer.endOffsets(partitions);
            while (partitions.stream().anyMatch(each -> consumer.position(each) < ends.get(each)))
                for (var record : consumer.poll(Duration.ofMillis(200))) System.out.println(line(record));
        }
    }

    private static void write(String address, String topic, String compression) throws Exception {
        Map<String, Object> settings =
            Map.of("bootstrap.servers", address, "compression.type", compression, "linger.ms", 50);
        var bytes = new ByteArraySerializer();
        var sent = new ArrayList<Future<RecordMetadata>>();
        try (var producer = new KafkaProducer<>(settings, bytes, bytes)) {
            var input = new BufferedReader(new InputStreamReader(System.in));
            for (String line = input.readLine(); line != null; line = input.readLine())
                sent.add(producer.send(record(topic, line.split(" ", -1))));
            for (var receipt : sent) System.out.println(receipt.get().partition() + " " + receipt.get().offset());
        }
    }

    private static ProducerRecord<byte[], byte[]> record(String topic, String[] words) {
        Integer partition = words[0].equals("any") ? null : Integer.valueOf(words[0]);
        var headers = new ArrayList<Header>();
        for (int at = 4; at < words.length; at++) {
            String[] pair = words[at].split("=", 2);
            headers.add(new RecordHeader(new String(bytes(pair[0]), UTF_8), bytes(pair[1])));
        }
        return new ProducerRecord<>(topic, partition, Long.valueOf(words[1]), bytes(words[2]), bytes(words[3]), headers);
    }

    private static String line(ConsumerRecord<byte[], byte[]> record) {
        var words = new ArrayList<String>();
        words.add(record.partition() + " " + record.timestamp() + " " + hex(record.key()) + " " + hex(record.value()));
        for (Header header : record.headers())
            words.add(hex(header.key().getBytes(UTF_8)) + "=" + hex(header.value()));
        return words.stream().collect(Collectors.joining(" "));
    }

    private static byte[] bytes(String hex) {
        return hex.equals("null") ? null : HEX.parseHex(hex);
    }

    private static String hex(byte[] bytes) {
        return bytes == null ? "null" : HEX.formatHex(bytes);
    }
}
